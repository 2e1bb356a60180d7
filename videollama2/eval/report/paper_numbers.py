"""Lists the numbers that the paper gives for its models (arXiv 2406.07476), as data.

They are those of the models and benchmarks in its tables 5 to 8. The paper has no numbers for single MVBench tasks or
VideoMME categories, so a category never has one here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


class PaperNumber(NamedTuple):
    """One published number.

    Attributes:
        value: accuracy in percent, or a judge's score from 0 to 5.
        frames: number of frames per video, or None for a benchmark of sounds.
        note: a difference to keep in mind when comparing, or an empty text.
        temperature: temperature at which answers were sampled, or 0 if they were not sampled.
    """

    value: float
    frames: int | None
    source: str
    note: str
    temperature: float = 0.0


@dataclass(frozen=True)
class PaperComparison:
    """The paper's number beside one of ours. ``differs`` lists the differences between the two measurements."""

    value: float
    source: str
    differs: list[str]


# Frames per video in table 5 and in table 6, which disagree about the 72B model.
_FRAMES = {
    "VideoLLaMA2-7B": (8, 8),
    "VideoLLaMA2-7B-16F": (16, 16),
    "VideoLLaMA2-8x7B": (8, 8),
    "VideoLLaMA2-72B": (16, 8),
    "VideoLLaMA2.1-7B-16F": (16, 16),
}

# Table 5. The columns of _TABLE_5 are in the order of _TABLE_5_COLUMNS.
_TABLE_5_COLUMNS = (
    ("egoschema", "accuracy"),
    ("perception_test", "accuracy"),
    ("mvbench", "accuracy"),
    ("videomme", "accuracy"),
    ("videomme_subtitles", "accuracy"),
    ("msvc", "correctness"),
    ("msvc", "detailedness"),
)
_TABLE_5 = {
    "VideoLLaMA2-7B": (50.5, 49.6, 53.4, 45.1, 46.6, 2.57, 2.61),
    "VideoLLaMA2-7B-16F": (51.7, 51.4, 54.6, 47.9, 50.3, 2.53, 2.59),
    "VideoLLaMA2-8x7B": (53.3, 52.2, 53.9, 47.9, 49.7, 2.53, 2.56),
    "VideoLLaMA2-72B": (63.9, 57.5, 62.0, 61.4, 63.1, 2.71, 2.67),
    "VideoLLaMA2.1-7B-16F": (53.1, 54.9, 57.3, 54.9, 56.4, 2.87, 2.81),
}

# Table 6.
_TABLE_6_COLUMNS = (
    ("msvd_qa", "accuracy"),
    ("msvd_qa", "score"),
    ("activitynet_qa", "accuracy"),
    ("activitynet_qa", "score"),
    ("videochatgpt", "correctness"),
    ("videochatgpt", "detail"),
    ("videochatgpt", "context"),
    ("videochatgpt", "temporal"),
    ("videochatgpt", "consistency"),
)
_TABLE_6 = {
    "VideoLLaMA2-7B": (71.7, 3.9, 49.9, 3.3, 3.09, 3.09, 3.68, 2.63, 3.25),
    "VideoLLaMA2-7B-16F": (70.9, 3.8, 50.2, 3.3, 3.16, 3.08, 3.69, 2.56, 3.14),
    "VideoLLaMA2-8x7B": (70.5, 3.8, 50.3, 3.4, 3.08, 3.11, 3.64, 2.67, 3.26),
    "VideoLLaMA2-72B": (71.0, 3.8, 55.2, 3.4, 3.23, 3.11, 3.71, 2.62, 3.12),
    "VideoLLaMA2.1-7B-16F": (70.6, 3.8, 53.0, 3.4, 3.30, 3.18, 3.78, 2.66, 3.20),
}

# Tables 7 (sounds) and 8 (videos with their sound). The models look at 16 frames.
_TABLE_7_COLUMNS = (("clotho_aqa", "accuracy"), ("tut2017", "accuracy"), ("vocalsound", "accuracy"))
_TABLE_7 = {"VideoLLaMA2-7B-AV": (70.11, 78.40, 93.19), "VideoLLaMA2.1-7B-AV": (71.02, 77.28, 92.40)}
_TABLE_8_COLUMNS = (("music_avqa", "accuracy"), ("avsd", "accuracy"), ("vggsound", "accuracy"))
_TABLE_8 = {"VideoLLaMA2-7B-AV": (79.2, 57.2, 70.9), "VideoLLaMA2.1-7B-AV": (80.9, 57.2, 71.4)}

_TABLES = {
    5: (_TABLE_5_COLUMNS, _TABLE_5, {name: frames[0] for name, frames in _FRAMES.items()}),
    6: (_TABLE_6_COLUMNS, _TABLE_6, {name: frames[1] for name, frames in _FRAMES.items()}),
    7: (_TABLE_7_COLUMNS, _TABLE_7, dict.fromkeys(_TABLE_7)),
    8: (_TABLE_8_COLUMNS, _TABLE_8, dict.fromkeys(_TABLE_8, 16)),
}
"""Columns, rows, and frames per video of each table."""

_JUDGED = "the paper says that ChatGPT judged; the published code compares texts"

_NOTES = {
    "egoschema": "the paper's is on the full set, not on the 500 public answers",
    "perception_test": "the paper's is on the test split",
    "msvc": "the paper's judge is GPT-3.5-turbo-0613",
    "msvd_qa": "the paper's judge is GPT-3.5",
    "activitynet_qa": "the paper's judge is GPT-3.5",
    "videochatgpt": "the paper's judge is GPT-3.5",
    "clotho_aqa": _JUDGED,
    "tut2017": _JUDGED,
    "vocalsound": _JUDGED,
    "music_avqa": f"{_JUDGED}; others measured 65.6 to 66 with the published code (its issues 135 and 170)",
    "avsd": "the published judge is GPT-3.5-turbo-0613",
    "vggsound": "the published judge is GPT-3.5-turbo-0613",
}

_TEMPERATURES = {"msvc": 0.2}

# Folder names of the data and other spellings in use, in lower case and without punctuation.
_ALIASES = {
    "perceptiontestmcqa": "perception_test",
    "perceptiontest": "perception_test",
    "activitynetzeroshotqa": "activitynet_qa",
    "activitynet": "activitynet_qa",
    "activitynetqa": "activitynet_qa",
    "msvdzeroshotqa": "msvd_qa",
    "msvd": "msvd_qa",
    "msvdqa": "msvd_qa",
    "videochatgptgen": "videochatgpt",
    "vcgpt": "videochatgpt",
    "videommesubtitles": "videomme_subtitles",
    "clothoaqa": "clotho_aqa",
    "avqa": "music_avqa",
    "avqamusic": "music_avqa",
    "musicavqa": "music_avqa",
    "musicqa": "music_avqa",
    "avssd": "vggsound",
    "vggsoundfinal": "vggsound",
    "vocal": "vocalsound",
}


def canonical_benchmark(name: str) -> str:
    """Return the one spelling of a benchmark: ``MSVD_Zero_Shot_QA`` and ``msvd-qa`` become ``msvd_qa``."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return _ALIASES.get(plain, plain)


def paper_number(model: str, benchmark: str, metric: str, subtitles: bool = False) -> PaperNumber | None:
    """Return the paper's number for this model, or None.

    Args:
        model: path or hub name; its last part must be the published name of a chat model
            (``DAMO-NLP-SG/VideoLLaMA2-7B``). Fine-tuned and base models are other models and have no number.
        metric: ``accuracy``, ``score``, or the judged aspect (``correctness``, ``detail``, ...).
        subtitles: whether to return the number with subtitles (VideoMME).
    """
    name = model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    key = canonical_benchmark(benchmark)
    if subtitles and key == "videomme":
        key = "videomme_subtitles"
    for number, (columns, rows, frames) in _TABLES.items():
        if name in rows and (key, metric) in columns:
            value = rows[name][columns.index((key, metric))]
            source = f"arXiv 2406.07476, table {number}"
            temperature = _TEMPERATURES.get(key, 0.0)
            return PaperNumber(value, frames[name], source, _NOTES.get(key, ""), temperature)
    return None
