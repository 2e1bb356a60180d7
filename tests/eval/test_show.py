"""The page that shows an evaluation: what is in it, and that a browser draws it."""

import json
import re
import shutil
import subprocess

import pytest

from tests.eval.helpers.reference import benchmarks_dir
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.controls import SHUFFLED_FRAMES, shuffled_order
from videollama2.eval.running.runner import AnswerOptions

HOSTILE = "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> \u2028"


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """Two evaluations of the same questions, with more and with fewer frames; one answer is hostile."""
    from videollama2.eval.running.run import EvaluationPlan, ModelChoice, run_evaluation

    made = []
    for frames in (8, 2):
        folder = tmp_path_factory.mktemp(f"frames{frames}")
        choice = ModelChoice("videollama2-tiny", options={"device": "cpu"})
        options = AnswerOptions(num_frames=frames, max_new_tokens=8)
        found = benchmark("moving_shapes").configure(shuffle_frames=True)
        run_evaluation(
            EvaluationPlan(found, world, folder, choice, options, limit=12, progress=False), lambda text: None
        )
        made.append(folder)
    path = made[0] / "samples.jsonl"
    first, *others = path.read_text().splitlines()
    row = json.loads(first)
    wrong = {"parsed": None, "guessed": False, "correct": False}
    row.update(output=HOSTILE, protocols={"published": wrong, "strict": wrong}, **wrong)
    path.write_text("\n".join([json.dumps(row), *others]) + "\n")
    return made


def page(*arguments):
    assert main(["show", *map(str, arguments)]) == 0


def data_of(path):
    text = path.read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(content)


def test_it_holds_questions_frames_and_answers(folders, world):
    page(folders[0])
    data = data_of(folders[0] / "show.html")
    items = {item.id: item for item in benchmark("moving_shapes").configure(shuffle_frames=True).load(world)}
    assert (len(data["questions"]), data["total"]) == (12, 12)
    for question in data["questions"]:
        item = items[question["id"]]
        assert (question["options"], question["answer"]) == (list(item.options), item.answer)
        frames = data["clips"][question["clip"]]
        times = [frame["time"] for frame in frames]
        assert len(frames) == 8 and all(frame["jpeg"].startswith("/9j/") for frame in frames)
        if item.control == SHUFFLED_FRAMES:  # as the model saw them
            order = shuffled_order(8, item.media.rpartition("/")[2])
            assert times == [sorted(times)[index] for index in order]
        else:
            assert times == sorted(times)
    assert data["runs"][0]["answers"][data["questions"][0]["id"]]["output"] == HOSTILE


def test_nothing_is_loaded_from_elsewhere(folders):
    page(folders[0])
    text = (folders[0] / "show.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"https?://", text)
    assert text.count("</script>") == 2  # the data and the program: no answer ends either


def test_choices(folders, tmp_path, capsys):
    path = tmp_path / "page.html"
    page(folders[0], "--wrong", "--output", path)
    samples = [json.loads(line) for line in (folders[0] / "samples.jsonl").read_text().splitlines()]
    wrong = [each["id"] for each in samples if not each["correct"]]
    assert [each["id"] for each in data_of(path)["questions"]] == wrong
    category = samples[0]["category"]
    page(folders[0], "--category", category, "--limit", 2, "--no-frames", "--output", path)
    data = data_of(path)
    assert {each["category"] for each in data["questions"]} == {category} == {data["category"]}
    assert len(data["questions"]) == 2 and data["clips"] == {}
    assert main(["show", str(folders[0]), "--category", "none"]) == 2
    assert main(["show", str(tmp_path)]) == 2
    assert "is the evaluation finished?" in capsys.readouterr().err


def test_a_page_without_data_says_why(folders, tmp_path):
    path = tmp_path / "page.html"
    page(folders[0], "--data", tmp_path, "--output", path)
    data = data_of(path)
    assert data["note"].startswith("Without frames and options: ") and data["clips"] == {}


def drawn(path):
    """The page's elements after its program ran in Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("needs Chromium")
    command = [browser, "--headless", "--no-sandbox", "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_a_browser_draws_two_evaluations_side_by_side(folders, tmp_path):
    path = tmp_path / "page.html"
    page(*folders, "--output", path)
    text = drawn(path)
    body = text.partition("<main")[2].partition("</main>")[0]
    assert body.count("<article>") == 12 and body.count('class="run"') == 24
    assert "12 of 12 questions" in text and "results differ" in text
    assert "<title>owned" not in text and "&lt;/script&gt;" in body
    assert body.count("<figure>") == 12 * 8 and 'src="data:image/jpeg;base64,/9j/' in body


@pytest.mark.slow
def test_a_browser_draws_verdicts(tmp_path):
    data = benchmarks_dir() / "videochatgpt_gen"
    model = ("--model-path", "videollama2-tiny", "--device", "cpu", "--max-new-tokens", "4", "--no-progress")
    asked = ["run", "videochatgpt", "--data", str(data), "--output", str(tmp_path), *model, "--judge-model", "local"]
    assert main(asked) == 0
    page(tmp_path)
    text = drawn(tmp_path / "show.html")
    assert "judge, correctness: 0" in text and "judge, consistency: 0" in text and "— and —" in text
