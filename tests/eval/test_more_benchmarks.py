"""Benchmarks beyond the paper's, on tiny sets in their official formats: prompts, readings, and scores by hand."""

import csv
import json
import shutil

import pytest

from tests.conftest import ROOT
from tests.eval.judge_server import JudgeServer
from videollama2.errors import DataError
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.benchmarks.charades_sta import overlap, published_span, strict_span
from videollama2.eval.benchmarks.videommmu import published_choice, published_equal, published_values
from videollama2.eval.judging.aspects import Judging
from videollama2.eval.judging.judge import OpenAIJudge
from videollama2.eval.samples import StoredAnswer
from videollama2.eval.scoring import judged_metrics, make_sample, read_metrics

CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
MODEL = ("--model-path", "videollama2-tiny", "--device", "cpu", "--max-new-tokens", "4", "--no-progress")


def place(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLIP, folder / name)


def mlvu(folder):
    tasks = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    (folder / "json").mkdir(parents=True)
    for number, task in enumerate(tasks):
        rows = [
            {
                "video": f"{task}.mp4",
                "question": "What?",
                "candidates": ["a", "b", "c", "d"],
                "answer": "abcd"[number % 4],
            }
        ] * (2 if number == 0 else 1)
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows))
        place(folder, f"video/{task}/{task}.mp4")


def nextqa(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "test.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                "video",
                "frame_count",
                "width",
                "height",
                "question",
                "answer",
                "qid",
                "type",
                "a0",
                "a1",
                "a2",
                "a3",
                "a4",
            ]
        )
        for number, kind in enumerate(("CW", "TN", "DL", "CH")):
            table.writerow(
                [4010069381, 9, 9, 9, f"how {number}", number, number, kind, "run", "sit", "eat", "nap", "1"]
            )
    place(folder, "NExTVideo/4010069381.mp4")


def tempcompass(folder):
    folder.mkdir(parents=True, exist_ok=True)
    choice = {"question": "What happens?\nA. it runs\nB. it sits", "answer": "B. it sits"}
    caption = {"question": "Which fits?\nCaption A: It runs.\nCaption B: It sits.", "answer": "Caption A: It runs."}
    content = {
        "multi-choice": {"77": {"action": [choice], "speed": [choice]}},
        "yes_no": {"77": {"action": [{"question": "Does it run?", "answer": "no"}]}},
        "caption_matching": {"77": {"order": [caption, {**caption, "answer": "Caption B: It sits."}]}},
    }
    for kind, rows in content.items():
        (folder / f"{kind}.json").write_text(json.dumps(rows))
    place(folder, "videos/77.mp4")


def charades(folder):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["3MSZA 24.3 30.4##person turn a light on.", "ABCDE 0.0 10.0##person sits."]
    (folder / "charades_sta_test.txt").write_text("\n".join(lines) + "\n")
    place(folder, "Charades_v1_480/3MSZA.mp4", "Charades_v1_480/ABCDE.mp4")


def longvideobench(folder):
    folder.mkdir(parents=True, exist_ok=True)
    known = {"video_path": "86C.mp4", "question": "What?", "candidates": ["a", "b", "c"], "question_category": "S2E"}
    rows = [
        {**known, "id": f"86C_{number}", "correct_choice": number, "duration_group": length}
        for number, length in enumerate((15, 60, 60))
    ]
    (folder / "lvb_val.json").write_text(json.dumps(rows))
    place(folder, "videos/86C.mp4")


def lvbench(folder):
    folder.mkdir(parents=True, exist_ok=True)
    qa = [
        {
            "uid": "1",
            "question": "Who?\n(A) red\n(B) blue",
            "answer": "A",
            "question_type": ["reasoning", "summarization"],
        },
        {"uid": "2", "question": "Why?\n(A) red\n(B) blue", "answer": "B", "question_type": ["reasoning"]},
    ]
    (folder / "video_info.meta.jsonl").write_text(json.dumps({"key": "Cm7", "type": "sport", "qa": qa}) + "\n")
    place(folder, "all_videos/Cm7.mp4")


def star(folder):
    folder.mkdir(parents=True, exist_ok=True)
    choices = [
        {"choice_id": number, "choice": text} for number, text in enumerate(("The bag.", "The door.", "The box."))
    ]
    known = {"question": "What was opened?", "video_id": "6H78U", "start": 0.0, "end": 2.5, "choices": choices}
    kinds = ("Interaction_T1_13", "Interaction_T1_14", "Sequence_T2_1", "Feasibility_T6_2")
    rows = [{**known, "question_id": name, "answer": "The door."} for name in kinds]
    (folder / "STAR_val.json").write_text(json.dumps(rows))
    place(folder, "Charades_v1_480/6H78U.mp4")


def tomato(folder):
    folder.mkdir(parents=True, exist_ok=True)
    known = {"question": "Which way?", "options": ["left to right", "right to left"], "demonstration_type": "human"}
    kinds = ("direction", "direction", "count", "rotation")
    rows = [
        {**known, "id": number, "answer": number % 2, "reason_type": kind, "video_path": f"videos/human/{number}.mp4"}
        for number, kind in enumerate(kinds)
    ]
    (folder / "tomato.json").write_text(json.dumps(rows))
    place(folder, *(f"videos/human/{number}.mp4" for number in range(4)))


def mmvu(folder):
    folder.mkdir(parents=True, exist_ok=True)
    choices = dict(zip("ABCDE", ("Bubble Sort", "Merge Sort", "Heap Sort", "Quick Sort", "Radix Sort"), strict=True))
    known = {"question": "Which?", "question_type": "multiple-choice", "choices": choices, "answer": "B"}
    subjects = ("Computer_Science", "Art", "Art")
    rows = [
        {**known, "id": f"validation_{number}", "video_path": f"videos/{subject}/{number}.mp4"}
        for number, subject in enumerate(subjects)
    ]
    rows.append({**rows[0], "id": "validation_9", "question_type": "open-ended", "choices": None, "answer": "sorting"})
    (folder / "validation.json").write_text(json.dumps(rows))
    place(folder, "videos/Computer_Science/0.mp4", "videos/Art/1.mp4", "videos/Art/2.mp4")


def videommmu(folder):
    folder.mkdir(parents=True, exist_ok=True)
    options = ["a cube", "a ball", "the large cone", "nothing"]
    first, second = "dev_Biology_3", "validation_Art_Theory_12"
    asked = {"question": "What is shown?", "options": options, "answer": "C"}
    lecture = [{"id": name, **asked} for name in (first, second)]
    lettered = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
    kinds = {"answer": "B", "question_type": "multiple-choice"}
    exam = [
        {"id": first, "question": "<image 1> Which?", "options": lettered, **kinds},
        {"id": second, "question": "<image 1> How many?", "options": [], "answer": "12.97", "question_type": "open"},
    ]
    for track, rows in {"Perception": lecture, "Comprehension": lecture, "Adaptation": exam}.items():
        content = {track: {str(number): row for number, row in enumerate(rows)}}
        (folder / f"{track.lower()}_video.json").write_text(json.dumps(content))
    place(folder, f"Science/{first}.mp4", f"Art/{second}.mp4")


SETS = {
    "videommmu": videommmu,
    "star": star,
    "tomato": tomato,
    "mmvu": mmvu,
    "mlvu": mlvu,
    "nextqa": nextqa,
    "tempcompass": tempcompass,
    "longvideobench": longvideobench,
    "lvbench": lvbench,
    "charades_sta": charades,
}


def scored(name, folder, outputs):
    """Metrics by name and protocol, of these outputs in the order of the questions."""
    found = benchmark(name)
    items = found.load(folder)
    answers = [StoredAnswer(item.id, output, None) for item, output in zip(items, outputs, strict=True)]
    samples = [make_sample(found, item, answer, "published") for item, answer in zip(items, answers, strict=True)]
    return {(metric.name, metric.protocol): metric for metric in read_metrics(found, samples)}


@pytest.mark.parametrize("name", SETS)
def test_it_runs_from_a_download_to_a_report(name, tmp_path, capsys):
    SETS[name](tmp_path / "hub")
    assert main(["prepare", name, "--from", str(tmp_path / "hub"), "--to", str(tmp_path / "data")]) == 0
    assert main(["run", name, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *MODEL]) == 0
    assert main(["score", str(tmp_path / "out"), "--protocol", "strict"]) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["metrics"][0]["counts"]["missing_media"] == 0
    assert report["metrics"][0]["counts"]["answered"] == len(benchmark(name).load(tmp_path / "data"))


def test_mlvu_by_hand(tmp_path):
    mlvu(tmp_path)
    first = benchmark("mlvu").load(tmp_path)[0]
    assert first.instruction == (
        "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
        "option that accurately addresses the question.\nQuestion: What?\nOptions:\n(A) a\n(B) b\n(C) c\n(D) d\n"
        "Only give the best option.\nBest option: ("
    )
    # Right answers: A A B C D A B C.
    outputs = ["A) a", "B", "The best answer is B", "(C) c", "none", "A", "B)", "D"]
    metric = scored("mlvu", tmp_path, outputs)["accuracy", "published"]
    by_task = [50, 100, 100, 0, 100, 100, 0]
    assert [cell.value for cell in metric.categories.values()] == by_task
    assert metric.macro == pytest.approx(sum(by_task) / 7)  # M-Avg
    assert metric.overall.value == pytest.approx(100 * 5 / 8)
    assert metric.counts.unparsed == 1


def test_nextqa_by_hand(tmp_path):
    nextqa(tmp_path)
    items = benchmark("nextqa").load(tmp_path)
    assert items[0].instruction == (
        "how 0\nA. run\nB. sit\nC. eat\nD. nap\nE. 1\nAnswer with the option's letter from the given choices directly."
    )
    metric = scored("nextqa", tmp_path, ["A", "B. sit", "A", "The answer is D."])["accuracy", "published"]
    assert metric.overall.value == 75
    assert {name: cell.value for name, cell in metric.categories.items()} == {
        "causal": 100,
        "temporal": 100,
        "descriptive": 0,
    }
    assert set(metric.breakdowns["type"]) == {"CW", "TN", "DL", "CH"}


def test_tempcompass_by_hand(tmp_path):
    tempcompass(tmp_path)
    items = benchmark("tempcompass").load(tmp_path)
    assert [item.instruction.rpartition("\n")[2] for item in items] == [
        "Please directly give the best option:",
        "Please directly give the best option:",
        "Please answer yes or no:",
        "Please directly give the best option:",
        "Please directly give the best option:",
    ]
    # Right answers: B, B, no, Caption A, Caption B. The rules do not read the second; the strict reading does.
    metrics = scored("tempcompass", tmp_path, ["B. it sits", "I think B", "No, it does not.", "It runs.", "Caption A"])
    published, strict = metrics["accuracy", "published"], metrics["accuracy", "strict"]
    assert (published.overall.value, strict.overall.value) == (60, 80)
    assert published.counts.unparsed == 1
    assert {name: cell.value for name, cell in published.categories.items()} == {
        "multi-choice": 50,
        "yes_no": 100,
        "caption_matching": 50,
    }


def test_tempcompass_captions_by_hand(tmp_path):
    tempcompass(tmp_path)
    told = "Information A: {'subject': 'man', 'action': 'running'}\nGenerated Caption:"
    captions = {"77": {"action": [{"question": told, "answer": "B. it sits"}] * 2, "speed": [{"question": told}]}}
    (tmp_path / "captioning.json").write_text(json.dumps(captions))
    found = benchmark("tempcompass_captioning")
    items = found.load(tmp_path)
    assert [(item.instruction, item.category, item.answer) for item in items] == [
        (told, aspect, "B. it sits") for aspect in ("action", "action", "speed")
    ]
    answers = [StoredAnswer(item.id, output, None) for item, output in zip(items, ("sits", "runs", "odd"), strict=True)]
    samples = [make_sample(found, item, answer, "published") for item, answer in zip(items, answers, strict=True)]
    server = JudgeServer()
    server.script = {
        "Video Description:sits\nMulti-Choice Question:\nWhat happens?\nA. it runs\nB. it sits\n": [
            "Reasoning: It sits.\nAnswer: B. it sits"
        ],
        "Video Description:runs\n": ["Reasoning: B. is said.\nAnswer: A. it runs"],
        "Video Description:odd\n": ["Answer: None of the choices are correct"],
    }
    try:
        judged, metrics = judged_metrics(found, samples, Judging(OpenAIJudge("m", base_url=server.url)), progress=False)
    finally:
        server.close()
    assert [sample.judge.pred for sample in judged] == ["yes", "no", "no"]
    assert [(metric.name, metric.protocol) for metric in metrics] == [("accuracy", "published"), ("accuracy", "strict")]
    assert metrics[0].overall.value == pytest.approx(100 / 3)
    assert {name: cell.value for name, cell in metrics[0].categories.items()} == {"action": 50, "speed": 0}
    (tmp_path / "multi-choice.json").write_text(json.dumps({"77": {"action": [{"question": "?", "answer": "A. x"}]}}))
    with pytest.raises(DataError, match="multi-choice.json has no question about speed of video '77'"):
        found.load(tmp_path)


# What the rules of lmms-eval's task give for these answers, computed with its own code.
@pytest.mark.parametrize(
    ("output", "choice"),
    [
        ("B", 1),
        ("B. a cube", 1),
        ("The answer is (C)", 2),
        ("D: because", 3),
        ("A or B.", 1),
        ("A. no, C. yes", 2),
        ("I think it is surely the Large Cone of them", 2),
        ("unknown", None),
        ("it is (A) not (B)", 1),
        ("IDEA B ", 1),
    ],
)
def test_video_mmmu_choices_are_read_as_published(output, choice):
    assert published_choice(output, ["a cube", "a ball", "the large cone", "nothing"]).value == choice


@pytest.mark.parametrize(
    ("output", "answer", "right"),
    [
        ("The mass is 12.970 g.", "12.97", True),
        ("so the result is 12.98", "12.97", False),
        ("x = 3 + 1 = 4", "4", True),
        ("There are 4 or 5", "4", True),
        ("1,234.5", "1234.5", True),
        ("It has four.", "4", False),
        ("the pressure is 2e3 Pa", "2000", True),
        ("ketose\nor aldose", "aldose", True),
        ("the letter is x", "x", True),
        (":", "4", False),
    ],
)
def test_video_mmmu_open_answers_are_read_as_published(output, answer, right):
    assert published_equal(published_values(output), answer) == right


def test_video_mmmu_by_hand(tmp_path):
    videommmu(tmp_path)
    items = benchmark("videommmu").load(tmp_path)
    listed = "A. a cube\nB. a ball\nC. the large cone\nD. nothing"
    learnt = "You should watch and learn the video content. Then apply what you learned to answer the following "
    placed = " question. The image for this question is at the end of the video.\n<image 1> "
    assert [item.instruction for item in items[::2]] == [
        f"What is shown?\n{listed}\nPlease ignore the Quiz question in last frame of the video.",
        f"What is shown?\n{listed}\nPlease ignore the Quiz question in last frame of the video.",
        f"{learnt}multi-choice{placed}Which?\n{listed}",
    ]
    assert items[5].instruction == f"{learnt}open-ended{placed}How many?"
    # Right answers: C C C C B 12.97. The published reading finds the C of "C." also where D is meant, and a 12.97 among
    # several numbers.
    outputs = ["C", "D is better than C.", "B", "(C)", "", "12.97 or 13"]
    metrics = scored("videommmu", tmp_path, outputs)
    published, strict = metrics["accuracy", "published"], metrics["accuracy", "strict"]
    assert {name: cell.value for name, cell in published.categories.items()} == {
        "Perception": 100,
        "Comprehension": 50,
        "Adaptation": 50,
    }
    assert published.macro == published.overall.value == pytest.approx(100 * 4 / 6)
    assert {name: cell.value for name, cell in published.breakdowns["discipline"].items()} == {
        "Science": pytest.approx(100 / 3),
        "Art": 100,
    }
    assert strict.overall.value == pytest.approx(100 * 2 / 6) and strict.counts.unparsed == 3


def test_star_by_hand(tmp_path):
    star(tmp_path)
    first = benchmark("star").load(tmp_path)[0]
    assert (first.start, first.end, first.group) == (0.0, 2.5, "6H78U")
    assert first.instruction == (
        "Question: What was opened?\nOptions:\n(A) The bag.\n(B) The door.\n(C) The box.\n"
        "Answer with the option's letter from the given choices directly and only give the best option."
    )
    metric = scored("star", tmp_path, ["(B)", "A", "the door.", "C"])["accuracy", "published"]
    values = {name: cell.value for name, cell in metric.categories.items()}
    assert values == {"Interaction": 50, "Sequence": 100, "Feasibility": 0}
    assert metric.macro == pytest.approx(50)


def test_tomato_by_hand(tmp_path):
    tomato(tmp_path)
    text = benchmark("tomato").load(tmp_path)[0].instruction
    assert text.startswith(
        "You will be provided with 16 separate frames uniformly sampled from a video, the frames are"
    )
    assert (
        "\n\n<question> \nWhich way? \n</question>\n\n<options> \n{'A': 'left to right', 'B': 'right to left'} \n"
        in text
    )
    assert text.endswith("\n\nDO NOT GENERATE ANSWER SUCH AS 'NOT POSSIBLE TO DETERMINE.' \n")
    # Right answers: A B A B. lmms-eval finds the B of "Both" and, where nothing is found, A.
    outputs = ["it moves from left to right i think", "Both", "A or (B)", "no idea"]
    metrics = scored("tomato", tmp_path, outputs)
    published = metrics["accuracy", "published"]
    assert published.overall.value == 50 and published.counts.guessed == 1
    assert {name: cell.value for name, cell in published.categories.items()} == {
        "direction": 100,
        "count": 0,
        "rotation": 0,
    }
    assert set(published.breakdowns["demonstration"]) == {"human"}
    assert metrics["accuracy", "strict"].overall.value == 25


def test_mmvu_by_hand(tmp_path):
    mmvu(tmp_path)
    items = benchmark("mmvu").load(tmp_path)
    assert [item.category for item in items] == ["Engineering", *["Humanities and social science"] * 2]
    assert items[0].instruction == (
        "\nQuestion:Which?\nA: Bubble Sort\nB: Merge Sort\nC: Heap Sort\nD: Quick Sort\nE: Radix Sort\n"
        "Visual Information: processed video\nDo not generate any intermediate reasoning process. Answer directly with "
        "the option letter from the\ngiven choices.\n"
    )
    # lmms-eval's rule takes the second for B: the word "sort" and a b somewhere. The third is C for every reading.
    metrics = scored("mmvu", tmp_path, ["B", "bubble sort", "C"])
    assert metrics["accuracy", "published"].overall.value == pytest.approx(100 * 2 / 3)
    assert metrics["accuracy", "strict"].overall.value == pytest.approx(100 / 3)


def test_longvideobench_by_hand(tmp_path):
    longvideobench(tmp_path)
    assert benchmark("longvideobench").load(tmp_path)[0].instruction == (
        "What?\nA. a\nB. b\nC. c\nAnswer with the option's letter from the given choices directly.\n"
    )
    metric = scored("longvideobench", tmp_path, ["A. a", "Best answer: B", "none"])["accuracy", "published"]
    assert {name: cell.value for name, cell in metric.categories.items()} == {"up to 15 s": 100, "up to 60 s": 50}
    assert metric.counts.unparsed == 1


def test_lvbench_by_hand(tmp_path):
    lvbench(tmp_path)
    metrics = scored("lvbench", tmp_path, ["A", "(A) red"])
    values = {name: metric.overall.value for (name, protocol), metric in metrics.items() if protocol == "published"}
    assert {name: value for name, value in values.items() if value is not None} == {
        "accuracy": 50,
        "accuracy, reasoning": 50,
        "accuracy, summarization": 100,
    }


@pytest.mark.parametrize(
    ("output", "published", "strict"),
    [
        ("The event happens in the 24.3 - 30.4 seconds.", (24.3, 30.4), (24.3, 30.4)),
        ("From 5 to 9.", (5, 9), (5, 9)),
        ("9 - 5", (5, 9), None),
        ("It starts at 3 seconds\nand ends at 8 seconds", (3, 8), (3, 8)),
        ("It starts at 3 and ends at 8", None, (3, 8)),
        ("00:10 - 00:20", (0, 10), (10, 20)),
        ("<think>1 - 2</think>3 - 4", (1, 2), (3, 4)),
        ("I do not know.", None, None),
        ("1 - 2 or 3 - 4", (1, 2), None),
    ],
)
def test_spans_are_read(output, published, strict):
    assert published_span(output) == published
    assert strict_span(output) == strict


def test_charades_by_hand(tmp_path):
    charades(tmp_path)
    assert (
        benchmark("charades_sta")
        .load(tmp_path)[0]
        .instruction.endswith(
            "Now I will give you the textual sentence: person turn a light on. "
            "Please return its start time and end time."
        )
    )
    assert overlap((0, 10), (5, 15)) == pytest.approx(5 / 15)
    assert overlap((0, 1), (2, 3)) == overlap((1, 1), (1, 1)) == 0
    metrics = scored("charades_sta", tmp_path, ["24.3 - 30.4", "5 - 15"])
    values = {name: metric.overall.value for (name, protocol), metric in metrics.items() if protocol == "published"}
    assert values == {
        "mean IoU": pytest.approx(100 * (1 + 1 / 3) / 2),
        "R@1, IoU >= 0.3": 100,
        "R@1, IoU >= 0.5": 50,
        "R@1, IoU >= 0.7": 50,
    }
    (tmp_path / "charades_sta_test.txt").write_text("3MSZA 24.3##x\n")
    with pytest.raises(DataError, match=r"line 1: expected 'VIDEO start end##sentence'"):
        benchmark("charades_sta").load(tmp_path)


def questions(folder, *rows):
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_questions_is_answered_and_scored_again(tmp_path, capsys):
    place(tmp_path, "clips/a.mp4", "b.mp4")
    shutil.copy(ROOT / "videollama2" / "assets" / "demo" / "shapes.png", tmp_path / "c.png")
    each = {"question": "What?", "options": ["it rains", "it snows"]}
    path = questions(
        tmp_path,
        {"id": "q1", "video": "clips/a.mp4", "start": 0.5, "answer": "B", **each},
        {"id": 7, "video": ["clips/a.mp4", "b.mp4"], "answer": 0, "category": "x", **each},
        {"image": "c.png", "answer": "it snows", "prompt": "Say A or B.", **each},
    )
    items = benchmark(str(path)).load(tmp_path)
    assert [(item.id, item.answer, item.category) for item in items] == [
        ("q1", 1, "all"),
        ("7", 0, "x"),
        ("2", 1, "all"),
    ]
    assert items[0].instruction.startswith("Question: What?\nOptions:\n(A) it rains\n")
    assert items[2].instruction == "Say A or B."
    out = tmp_path / "out"
    assert main(["run", str(path), "--output", str(out), *MODEL]) == 0
    report = json.loads((out / "results.json").read_text())
    assert report["benchmark"] == "mine.jsonl" and report["metrics"][0]["counts"]["answered"] == 3
    before = (out / "results.json").read_bytes()
    assert main(["score", str(out)]) == 0
    assert (out / "results.json").read_bytes() == before


def test_open_questions_of_a_file_are_judged(tmp_path):
    place(tmp_path, "a.mp4")
    rows = [{"video": "a.mp4", "question": "What colour?", "answer": ["red", "a red one"]}]
    path = questions(tmp_path, *rows, {"video": "a.mp4", "question": "How many?", "answer": 2})
    out = tmp_path / "out"
    assert main(["run", str(path), "--output", str(out), *MODEL, "--judge-model", "local"]) == 0
    names = {metric["name"] for metric in json.loads((out / "results.json").read_text())["metrics"]}
    assert names == {"accuracy", "score"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "field 'video': is missing, as are 'image' and 'audio'"),
        ({"video": "a.mp4"}, "field 'question': is missing"),
        ({"video": "../a.mp4", "question": "?"}, "inside the data folder"),
        (
            {"video": "a.mp4", "question": "?", "options": ["a", "b"], "answer": "C"},
            "expected a letter, a number from 0",
        ),
        ({"video": "a.mp4", "question": "?", "options": ["a", "b"], "answer": 2}, "expected a letter, a number from 0"),
        ({"image": "a.png", "question": "?", "start": 1}, "an image has no time"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=f"mine.jsonl: index 0.*{message}"):
        benchmark(str(questions(tmp_path, row)))


def test_a_file_holds_one_kind_of_questions(tmp_path):
    rows = [{"video": "a.mp4", "question": "?"}, {"video": "a.mp4", "question": "?", "options": ["a", "b"]}]
    with pytest.raises(DataError, match="with options and without"):
        benchmark(str(questions(tmp_path, *rows)))
    with pytest.raises(DataError, match="none.jsonl: is missing"):
        benchmark(str(tmp_path / "none.jsonl"))
