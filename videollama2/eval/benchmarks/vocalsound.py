"""VocalSound, test set: six sounds that people make without speaking (arXiv 2205.03433)."""

from videollama2.eval.benchmarks.sound_classes import SoundClasses


class VocalSound(SoundClasses):
    """See the module."""

    name = "vocalsound"
    title = "VocalSound"
    folder = "vocal"
    source = "https://github.com/YuanGongND/vocalsound; the list of questions: QwenLM/Qwen-Audio, EVALUATION.md"
    layout = """\
vocalsound_eval.jsonl    {"audio": path, of which the end counts, "gt": class}, one a line
audio_16k/               NAME.wav"""
    annotations = ("vocalsound_eval.jsonl",)
    task = "Identify the human sound in the audio."
    classes = ("Laughter", "Sigh", "Cough", "Throat clearing", "Sneeze", "Sniff")
    folders = ("audio_16k", ".")
