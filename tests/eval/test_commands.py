"""The commands as a user types them: judged benchmarks, scoring again, the published code's files, comparison."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.eval.helpers.judge_server import JudgeServer
from tests.eval.helpers.reference import benchmarks_dir, cases_dir, expected, unpadded
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark

pytestmark = pytest.mark.usefixtures("without_charts")

MODEL = ("--model-path", "videollama2-tiny", "--device", "cpu", "--max-new-tokens", "8", "--no-progress")


def run(name, output, *more):
    data = benchmarks_dir() / benchmark(name).folder
    return main(["run", name, "--data", str(data), "--output", str(output), *MODEL, *map(str, more)])


def results(folder):
    return json.loads((folder / "results.json").read_text())


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metrics", "total"),
    [
        ("msvd_qa", ["accuracy", "score"], 6),
        ("activitynet_qa", ["accuracy", "score"], 6),
        ("msvc", ["correctness", "detailedness"], 3),
        ("videochatgpt", ["correctness", "detail", "context", "temporal", "consistency"], 3),
    ],
)
def test_judged_benchmarks(name, metrics, total, tmp_path):
    assert run(name, tmp_path, "--judge-model", "local") == 0
    report = results(tmp_path)
    assert list(dict.fromkeys(metric["name"] for metric in report["metrics"])) == metrics
    assert {metric["protocol"] for metric in report["metrics"]} == {"published", "strict"}
    assert all(metric["counts"]["total"] == total for metric in report["metrics"])
    assert report["judge"]["kind"] == "local"


def test_answers_are_saved_without_a_judge_and_judged_later(tmp_path, capsys):
    assert run("videochatgpt", tmp_path) == 0
    assert "no judge is given" in capsys.readouterr().out
    assert results(tmp_path)["metrics"] == []
    assert main(["score", str(tmp_path), "--judge-model", "local", "--dry-run", "--no-progress"]) == 0
    assert "consistency: rows 3" in capsys.readouterr().out
    assert results(tmp_path)["metrics"] == []
    assert main(["score", str(tmp_path), "--judge-model", "local", "--no-progress"]) == 0
    judged = (tmp_path / "results.json").read_bytes()
    rows = {row["id"]: row for row in rows_of(tmp_path)}
    assert set(rows["generic-0"]["judges"]) == {"correctness", "detail", "context"}
    assert set(rows["consistency-2"]["judges"]) == {"consistency"}
    assert len(rows["consistency-2"]["output"]) == len(rows["consistency-2"]["question"]) == 2
    # The same command again, without a judge, leaves the verdicts alone.
    assert run("videochatgpt", tmp_path) == 0
    assert (tmp_path / "results.json").read_bytes() == judged
    assert main(["score", str(tmp_path)]) == 2
    assert "Video-ChatGPT is judged: give --judge-model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("charted")
def test_scoring_again_gives_the_same_and_another_protocol_another_reading(tmp_path):
    assert run("egoschema", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert main(["score", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert main(["score", str(tmp_path), "--protocol", "strict"]) == 0
    assert results(tmp_path)["protocol"] == "strict"
    assert all(row["parsed"] == row["protocols"]["strict"]["parsed"] for row in rows_of(tmp_path))


def test_missing_answers_are_told_or_left_out(tmp_path, capsys):
    assert run("egoschema", tmp_path) == 0
    path = next((tmp_path / "answers").iterdir())
    lost, *kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept))
    assert main(["score", str(tmp_path)]) == 2
    assert f"1 of 4 answers are missing, '{json.loads(lost)['id']}' first" in capsys.readouterr().err
    assert main(["score", str(tmp_path), "--partial"]) == 0
    assert results(tmp_path)["metrics"][0]["counts"]["total"] == 3


def test_changed_annotations_are_noticed(tmp_path, copied, capsys):
    data = copied("egoschema")
    assert main(["run", "egoschema", "--data", str(data), "--output", str(tmp_path / "out"), *MODEL]) == 0
    path = data / "questions.json"
    path.write_text(path.read_text().replace("blue", "green"))
    assert main(["score", str(tmp_path / "out")]) == 2
    assert "its questions are not those" in capsys.readouterr().err


@pytest.mark.slow
def test_a_judge_behind_an_openai_compatible_server(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    server = JudgeServer()
    options = (
        "--judge-model",
        "grader",
        "--judge-url",
        server.url,
        "--rubric",
        "own",
        "--judge-retries",
        "0",
        "--judge-max-tokens",
        "60",
    )
    try:
        server.script = {"twice first red last table": ["I cannot say"]}
        assert run("msvd_qa", tmp_path, *options) == 0
        report = results(tmp_path)
        assert report["judge"]["model"] == "grader"
        assert report["judge"]["rubric"]["version"] == "own-1"
        accuracy = report["metrics"][0]
        assert accuracy["counts"]["judge_failed"] == 1
        assert (accuracy["overall"]["value"], round(accuracy["overall"]["lower_bound"])) == (100, 83)
        asked = len(server.seen)
        assert server.seen[0][3]["max_tokens"] == report["judge"]["max_tokens"] == 60
        server.script = {}
        assert main(["score", str(tmp_path), *options, "--no-progress"]) == 0
        assert len(server.seen) == asked + 1  # what was judged before is not paid for again
        assert results(tmp_path)["metrics"][0]["counts"]["judge_failed"] == 0
    finally:
        server.close()
    assert server.seen[-1][2]["authorization"] == "Bearer very-secret"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]
    assert "very-secret" not in "".join(capsys.readouterr())


def published(tmp_path, name, text):
    path = tmp_path / name
    rows = text if isinstance(text, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in text)
    path.write_text(rows, encoding="utf-8")
    return str(path)


def score(*arguments):
    return main(["score", *map(str, arguments), "--no-progress"])


def test_published_mvbench_file(tmp_path, capsys):
    rows = [{"vid": f"{n}.mp4", "task_type": "Action Count", "pred": n % 2, "gt": 0} for n in range(4)]
    assert score(published(tmp_path, "merge.json", rows), "--benchmark", "mvbench") == 0
    said = unpadded(capsys.readouterr().out)
    assert "| accuracy | published | % | 4 | 50.0 |" in said
    assert "| accuracy | published | 4 | 4 | - | - | 0 | 0 | 0 |" in said  # unparsed and guessed: nobody can know
    assert "how many of them the published parser guessed is not known" in said
    assert "strict |" not in said
    assert score(published(tmp_path, "bad.json", rows + [{"vid": "x"}]), "--benchmark", "mvbench") == 2
    assert "bad.json: entry 4, field 'pred': is missing" in capsys.readouterr().err
    evil = "{'vid': __import__('os').abort()}\n"
    assert score(published(tmp_path, "evil.json", evil), "--benchmark", "mvbench") == 2
    assert "line 1 is not JSON" in capsys.readouterr().err


def test_published_egoschema_file_needs_the_annotations(tmp_path, capsys):
    path = published(tmp_path, "merge.csv", "q_uid, answer\n89181ba3bdee9231, 0\nc3d9b3b022b56be1, 2\n")
    assert score(path, "--benchmark", "egoschema") == 2
    assert "give the benchmark's folder with --data" in capsys.readouterr().err
    with_data = ("--benchmark", "egoschema", "--data", benchmarks_dir() / "egoschema")
    assert score(path, *with_data) == 2
    assert "2 of 4 questions are missing; --partial scores what is there" in capsys.readouterr().err
    assert score(path, *with_data, "--partial") == 0
    assert "| accuracy | published | % | 2 | 50.0 |" in unpadded(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("egoschema_one_question_three_times.csv", ("egoschema", "--data", benchmarks_dir() / "egoschema"), "3 times"),
        ("activitynet_same_id_three_times.jsonl", ("activitynet_qa", "--judge-model", "local"), "3 times"),
    ],
)
def test_a_question_that_is_there_more_than_once_is_refused(file, options, message, capsys):
    assert score(cases_dir() / "published_files" / file, "--benchmark", *options, "--partial") == 2
    assert message in capsys.readouterr().err


def test_repeated_lines_without_an_id_are_counted(tmp_path, capsys):
    line = {"video_name": "v.mp4", "question": "Describe.", "answer": ["a cat"], "pred": "A cat"}
    path = published(tmp_path, "msvc.json", [line, line, {**line, "answer": ["a dog"]}])
    assert score(path, "--benchmark", "msvc", "--judge-model", "local") == 0
    assert "1 of 3 answers are to a question that is there already" in capsys.readouterr().out


def test_published_perception_test_file(tmp_path, capsys):
    text = '{\n"video_9198": [{"id": 0, "answer_id": 1}],\n"video_8107": [{"id": 0, "answer_id": 0}]\n}\n'
    path = published(tmp_path, "merge.json", text)
    data = benchmarks_dir() / "perception_test_mcqa"
    assert score(path, "--benchmark", "perception_test", "--data", data, "--partial") == 0
    said = unpadded(capsys.readouterr().out)
    assert "| accuracy | published | % | 2 | 50.0 |" in said and "- questions: 2 of 6 questions\n" in said
    pieces = published(tmp_path, "pieces.json", '"video_9198": [{"id": 0, "answer_id": 1}],\n')
    assert score(pieces, "--benchmark", "perception_test", "--data", data, "--partial") == 0


def test_published_videomme_file_gives_the_official_report(tmp_path, capsys):
    path = published(tmp_path, "merge.json", json.dumps(expected("videomme_responses.json")))
    assert score(path, "--benchmark", "videomme", "--output", tmp_path / "out") == 0
    assert expected("videomme_report.txt") in capsys.readouterr().out
    (metric,) = results(tmp_path / "out")["metrics"]  # the file holds letters: there is no strict reading
    counts = metric["counts"]
    assert (counts["total"], counts["missing_media"], counts["unparsed"], counts["guessed"]) == (18, 3, 2, None)


def test_published_open_answers_are_judged(tmp_path, capsys):
    # A line separator is a character like others within JSON, and no end of a row.
    rows = [{"id": "v_a_0", "question": "who?\u2028", "answer": "a man", "pred": "Man."}]
    rows.append({"id": "v_a_1", "question": "how many?", "answer": 2, "pred": "three"})
    path = published(tmp_path, "merge.json", rows)
    assert score(path, "--benchmark", "activitynet_qa") == 2
    assert "ActivityNet-QA is judged" in capsys.readouterr().err
    assert score(path, "--benchmark", "activitynet_qa", "--judge-model", "local") == 0
    assert "| accuracy | strict | % | 2 | 50.0 |" in unpadded(capsys.readouterr().out)
    pair = [{"video_name": "v", "Q1": "a?", "Q2": "b?", "A": "yes", "P1": "Yes", "P2": "yes."}]
    path = published(tmp_path, "pair.json", pair)
    assert score(path, "--benchmark", "videochatgpt", "--judge-model", "local") == 0
    assert "| consistency | strict | 0-5 | 1 | 5.00 |" in unpadded(capsys.readouterr().out)
    folder = tmp_path / "answers" / "temporal" / "VideoLLaMA2-7B"
    folder.mkdir(parents=True)
    path = published(folder, "merge.json", [{"video_name": "v", "Q": "when?", "A": "before", "P": "Before."}])
    assert score(path, "--benchmark", "videochatgpt", "--judge-model", "local") == 0
    said = unpadded(capsys.readouterr().out)
    assert "| temporal | strict | 0-5 | 1 | 5.00 |" in said and "correctness" not in said
    captions = [{"video_name": "v.mp4", "question": "Describe.", "answer": ["a cat", "one cat"], "pred": "A cat"}]
    path = published(tmp_path, "msvc.json", captions)
    assert score(path, "--benchmark", "msvc", "--judge-model", "local") == 0
    assert "| detailedness | strict | 0-5 | 1 | 5.00 |" in unpadded(capsys.readouterr().out)


def test_comparison_is_paired(tmp_path, capsys):
    lines = []
    for n in range(20):
        readings = {"published": {"correct": n % 2 == 0}, "strict": {"correct": n % 4 == 0}}
        lines.append({"id": str(n), "group": str(n // 2), "question": str(n), "protocols": readings})
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        published(folder, "samples.jsonl", lines)
    better = [{**row, "protocols": {**row["protocols"], "strict": {"correct": True}}} for row in lines]
    published(b, "samples.jsonl", better[:-1])
    assert main(["compare", str(a), str(b), "--json"]) == 0
    same, gain = json.loads(capsys.readouterr().out)
    assert (same["difference"]["difference"], same["difference"]["n"], same["only_a"]) == (0, 19, 1)
    assert gain["difference"]["difference"] == pytest.approx(100 * 14 / 19)
    assert gain["difference"]["low"] > 0
    assert main(["compare", str(a), str(b)]) == 0
    assert "accuracy, strict (%)" in capsys.readouterr().out
    published(b, "samples.jsonl", [{**row, "question": "other"} for row in lines])
    assert main(["compare", str(a), str(b)]) == 2
    assert "question '0' has another text" in capsys.readouterr().err


def test_list_layout_and_check(capsys, copied):
    assert main(["list"]) == 0
    listed = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert {len(cells) for cells in listed} == {4}, "columns stay apart, however long a title is"
    assert ["mvbench", "MVBench", "eval/mvbench", "multiple choice"] in listed
    assert main(["layout", "mvbench"]) == 0
    assert "eval/mvbench/" in capsys.readouterr().out
    data = copied("msvc")
    assert main(["check", "msvc", "--data", str(data)]) == 0
    assert "3 questions (3 with answers) about 3 clips of 3 files" in capsys.readouterr().out
    shutil.rmtree(data / "msvd")
    assert main(["check", "msvc", "--data", str(data)]) == 1
    assert f"3 of 3 files are missing:\n  {data}/msvd/b49b93d5.mp4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "there is no benchmark 'nothing'"),
        (["run", "mvbench", "--data", "/nowhere"], "action_sequence.json: is missing"),
        (["run", "mvbench", "--judge-model", "local"], "MVBench is multiple choice: it takes no judge"),
        (["run", "mvbench", "--subtitles"], "benchmark mvbench has no option subtitles"),
        (["run", "msvc", "--dry-run"], "--dry-run tells what judging would cost"),
        (["score", "/nowhere"], "/nowhere: no such file or folder"),
        (["compare", "/nowhere", "/nowhere"], "is the evaluation finished?"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_wrong_numbers_are_refused(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["run", "mvbench", "--limit", "0"])
    assert "expected a whole number of at least 1, got '0'" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", "mvbench"]) == 2
    assert "RANK 3 must be below WORLD_SIZE 2" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom videollama2.eval.__main__ import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'av', 'numpy', 'openai'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--judge-model" in done.stdout


@pytest.mark.slow
def test_scoring_and_checking_need_no_torch_and_what_is_read_no_judge(tmp_path):
    assert run("egoschema", tmp_path) == 0
    data = benchmarks_dir() / "egoschema"
    code = (
        "import sys\nfrom videollama2.eval.__main__ import main\n"
        f"assert main(['score', {str(tmp_path)!r}]) == main(['check', 'egoschema', '--data', {str(data)!r}]) == 0\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\nassert not heavy, heavy\n"
        "judge = [name for name in sys.modules if name.startswith('videollama2.eval.judging')]\n"
        "assert not judge, judge\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
