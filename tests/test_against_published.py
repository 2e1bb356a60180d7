"""The comparisons with the published code: this package's side runs, and their tables tell what was measured.

The other side needs a work tree and an environment of the published code, which are no part of the tests.
"""

import importlib
import json
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers.forked import run_python


@pytest.fixture(scope="module")
def benchmarks():
    """The modules by name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    names = ("published_code", "against_published", "train_against_published", "evaluate_against_published")
    modules = {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(ROOT / "benchmarks"))
    return modules


@pytest.fixture(scope="module")
def folder(benchmarks, tmp_path_factory):
    """The built-in model in the form that both sides read."""
    target = tmp_path_factory.mktemp("published") / "form"
    benchmarks["published_code"].make_folder("videollama2-tiny", target, aspect_ratio="pad")
    return target


@pytest.fixture
def worktree(tmp_path):
    (tmp_path / "tree" / "videollama2").mkdir(parents=True)
    (tmp_path / "tree" / "videollama2" / "mm_utils.py").touch()
    return str(tmp_path / "tree")


def round_of(seconds, memory_gib, answer="four"):
    names = ("import", "load", "start", "first answer", "second question", "image")
    spent = {kind: dict.fromkeys(names, times * seconds) for kind, times in (("wall", 1), ("processor", 2))}
    return {**spent, "memory": memory_gib * 2**30, "answers": dict.fromkeys(names[3:], answer)}


def test_rows_are_medians_of_pairs_and_are_held_to_their_goals(benchmarks):
    published = [round_of(12.0, 8), round_of(30.0, 8), round_of(12.0, 8)]
    own = [round_of(1.0, 4), round_of(3.0, 4), round_of(2.0, 4)]
    rows = {row.name: row for row in benchmarks["against_published"].rows(published, own, "float32")}
    assert [rows["image"].published, rows["image"].own] == [12.0, 2.0]
    assert rows["image"].ratio == rows["image"].of_processor == 10.0  # of 12, 10 and 6
    assert rows["second question"].verdict == "at least 10: met"
    assert rows["peak memory, GiB"].ratio == 0.5
    assert rows["peak memory, GiB"].verdict == "at most 0.65: met"
    assert rows["import"].verdict == ""
    assert not any(row.verdict for row in benchmarks["against_published"].rows(published, own, "float32", judged=False))
    slower = benchmarks["against_published"].rows(own, published, "int8")
    assert [row.verdict.rpartition(" ")[2] for row in slower if row.goal is not None] == ["MISSED", "MISSED"]


def test_a_ratio_by_processor_seconds_decides(benchmarks):
    theirs, ours = round_of(12.0, 8), round_of(1.0, 8)
    ours["processor"]["image"] = 8.0
    rows = {row.name: row for row in benchmarks["against_published"].rows([theirs], [ours], "float32")}
    assert (rows["image"].ratio, rows["image"].of_processor) == (12.0, 3.0)
    assert rows["image"].verdict == "at least 4: MISSED"


def test_a_table_counts_equal_answers(benchmarks):
    published, own = [round_of(12.0, 8)] * 2, [round_of(1.0, 4), round_of(1.0, 4, "five")]
    text = benchmarks["against_published"].table("float32", published, own)
    assert "3 of 6 answers are the same text" in text
    line = next(line for line in text.splitlines() if "second question" in line)
    assert line.split() == ["second", "question", "12.00", "1.00", "12.00x", "12.00x", "at", "least", "10:", "met"]


def test_losses_and_answers_of_evaluation_are_compared(benchmarks):
    train, shared = benchmarks["train_against_published"], benchmarks["published_code"]
    assert train.largest_difference([{"losses": [2.0, 4.0]}], [{"losses": [2.0, 4.1]}]) == pytest.approx(0.025)
    theirs, ours = {"answers": {"a": "red", "b": "two"}}, {"answers": {"a": "red"}}
    assert shared.equal_texts([theirs], [ours]) == (1, 2)


def test_the_mix_has_the_shares_of_the_readme(benchmarks):
    rows = [{"video": n} for n in range(30)] + [{"image": n} for n in range(170)] + [{"text": n} for n in range(10)]
    shares = {"video": 0.13, "image": 0.82, "text": 0.05}
    mixed = benchmarks["train_against_published"].mix(rows, 100, shares)
    assert [sum(kind in row for row in mixed) for kind in shares] == [13, 82, 5]
    few = benchmarks["train_against_published"].mix(rows, 4, shares)
    assert [sum(kind in row for row in few) for kind in shares] == [1, 2, 1]


@pytest.mark.parametrize("name", ["against_published", "train_against_published", "evaluate_against_published"])
def test_both_sides_must_be_given(benchmarks, name, tmp_path, worktree, capsys):
    parse = benchmarks[name].parse
    with pytest.raises(SystemExit):
        parse([worktree])
    assert "--python is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse([str(tmp_path), "--python", "python3"])
    assert f"{tmp_path} is not a work tree of the published code" in capsys.readouterr().err
    assert parse([worktree, "--python", "python3"]).rounds > 1


def test_a_side_tells_its_result_among_other_lines(benchmarks, tmp_path, worktree):
    shared, side = benchmarks["published_code"], tmp_path / "side.py"
    args = benchmarks["train_against_published"].parse([worktree, "--python", sys.executable, "--batch", "3"])
    code = "import sys\nprint('noise', end='')\n"
    code += f"print('\\n{shared.MARK}' + str(len(sys.argv)) + '\\nmore')\n"
    side.write_text(code)
    told = [shared.run_side(str(side), name, "float32", args, ("batch", "steps")) for name in ("published", "own")]
    assert told == [11, 11]  # the script, the work tree, --child and two, three options
    side.write_text("raise ValueError('no such weights')\n")
    with pytest.raises(SystemExit, match=r"no such weights\n\nside.py: own, float32: the process ended with 1"):
        shared.run_side(str(side), "own", "float32", args, ())


def test_stages_lie_within_each_other(benchmarks):
    clock = benchmarks["published_code"].Clock()
    with clock.stage("all"):
        with clock.stage("one"):
            sum(range(100_000))
        with clock.stage("two"):
            sum(range(100_000))
    assert clock.wall["all"] >= clock.wall["one"] + clock.wall["two"] > 0
    assert clock.processor.keys() == clock.wall.keys()


def side_of(module, options, worktree, folder):
    """What the own side of a comparison tells, as its process does."""
    flags = {"--model": folder, "--threads": 1, **options}
    child = [worktree, "--child", "own", "float32", "--smoke", *(each for pair in flags.items() for each in pair)]
    done = run_python([ROOT / "benchmarks" / f"{module}.py", *child])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("result of this side: ")]
    return json.loads(lines[-1].partition(": ")[2])


def test_the_own_side_answers_the_three_questions(benchmarks, worktree, folder):
    told = side_of("against_published", {"--new-tokens": 4}, worktree, folder)
    assert told["answers"] == {"first answer": "the red circle", "second question": "four", "image": "the red cross"}
    assert set(told["wall"]) == set(told["processor"]) == set(benchmarks["against_published"].STAGES)
    assert told["memory"] > 2**27


def test_the_own_side_evaluates_and_trains(benchmarks, tmp_path, worktree, folder):
    evaluate = benchmarks["evaluate_against_published"]
    count = evaluate.write_questions(tmp_path, 1, 3)
    told = side_of("evaluate_against_published", {"--data": tmp_path}, worktree, folder)
    asked = json.loads((tmp_path / evaluate.FOLDER / "test_q.json").read_text())
    assert count == len(asked) == 3
    assert set(told["answers"]) == {row["question_id"] for row in asked}
    assert all(told["answers"].values())

    world = tmp_path / evaluate.FOLDER / "world"
    (world / "mix.json").write_text(json.dumps(json.loads((world / "train.json").read_text())[:2]))
    told = side_of("train_against_published", {"--data": world, "--batch": 1}, worktree, folder)
    assert len(told["losses"]) == 2
    assert all(0 < loss < 20 for loss in told["losses"])
    # The first batch only warms up.
    assert told["wall"]["forward and backward"] >= told["wall"]["forward"] + told["wall"]["backward"] > 0
