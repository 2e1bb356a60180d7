"""Tiny sets in the official formats of benchmarks, as they are downloaded."""

import csv
import json
import shutil

from tests.conftest import ROOT

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
