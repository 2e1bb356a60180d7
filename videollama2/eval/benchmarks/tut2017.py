"""TUT Acoustic Scenes 2017, evaluation set: fifteen acoustic scenes (https://zenodo.org/records/1040168)."""

from videollama2.eval.benchmarks.sound_classes import SoundClasses


class TUT2017(SoundClasses):
    """See the module."""

    name = "tut2017"
    title = "TUT2017"
    folder = "TUT2017"
    source = "https://zenodo.org/records/1040168; the list of questions: QwenLM/Qwen-Audio, EVALUATION.md"
    layout = """\
tut2017_eval.jsonl       {"audio": path, "gt": class}, one a line
audio/                   the sounds; PATH relative to this folder, or its end"""
    annotations = ("tut2017_eval.jsonl",)
    task = "Question: Identify the sound event in the audio."
    classes = (
        "beach",
        "bus",
        "cafe or restaurant",
        "car",
        "city center",
        "forest path",
        "grocery store",
        "home",
        "library",
        "metro station",
        "office",
        "park",
        "residential area",
        "train",
        "tram",
    )
    folders = ("audio", ".")
