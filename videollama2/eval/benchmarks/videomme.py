"""Video-MME: 900 videos of up to an hour with three questions each, with or without subtitles (arXiv 2405.21075)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.atomic import write_atomically
from videollama2.eval.benchmarks.multiple_choice import ONLY_THE_LETTER, MultipleChoice, read_items
from videollama2.eval.coverage import Supplement
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.reading.answers import LETTERS, published_videomme
from videollama2.eval.samples import Sample
from videollama2.eval.subtitles import FOLDERS, SubtitleFolder, check_subtitles, read_subtitles, subtitles_for

PARQUET = "test-00000-of-00001.parquet"
SUBTITLE_MODES = ("published", "seen")
_TASK = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
_SUBTITLES = "This video's subtitles are listed below:\n{}\n"
_SUBTITLED = 744 / 900
"""Share of the videos with subtitles, as the benchmark's authors count them."""
_VIDEO_FIELDS = ("video_id", "url", "duration", "domain", "sub_category")


class VideoMME(MultipleChoice):
    """See the module.

    Args:
        subtitles: None for no subtitles; ``published`` for a cue for every frame of the published sampler, with the
            head of the subtitles also for a video without any; ``seen`` for the cues of the frames that the model sees,
            each once.
    """

    name = "videomme"
    title = "VideoMME"
    folder = "videomme"
    questions = 2700
    source = "https://huggingface.co/datasets/lmms-lab/Video-MME"
    layout = f"""\
{PARQUET}   (or below videomme/) video_id, duration, domain, sub_category, url, videoID,
                         question_id, task_type, question, options (4 texts "A. ..."), answer (a letter)
videos/                  (or data/) VIDEOID.mp4 (or another kind of video)
subtitles/               (or subtitle/) VIDEOID.srt (or VIDEOID.en.srt, .vtt), where the video has subtitles"""
    annotations = (PARQUET, f"videomme/{PARQUET}")
    has_subtitles = True
    breakdowns = ("domain", "sub_category", "task_type")
    published_parser = staticmethod(published_videomme)

    def __init__(self, subtitles: str | None = None) -> None:
        if subtitles not in (None, *SUBTITLE_MODES):
            raise ConfigError(f"subtitles must be one of {', '.join(SUBTITLE_MODES)}, got {subtitles!r}")
        self.subtitles = subtitles
        self._lines: dict[tuple[Path, int], str] = {}
        self._folders: dict[Path, SubtitleFolder] = {}

    def configure(self, subtitles: str | None = None, **options: Any) -> Benchmark:
        """See :class:`Benchmark`."""
        super().configure(**options)
        return VideoMME(subtitles)

    def settings(self) -> dict[str, Any]:
        """See :class:`Benchmark`."""
        return {"subtitles": self.subtitles}

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        return read_items(data, self.annotations, ("videos", "data", "video"), _item)

    def instructions(self, item: Item, data: Path, num_frames: int) -> tuple[str, ...]:
        """See :class:`Benchmark`; if subtitles are asked for, they come before the question."""
        if self.subtitles is None:
            return item.instructions
        lines = self._subtitles(item, data, num_frames)
        if not lines and self.subtitles != "published":
            return item.instructions
        return tuple(_SUBTITLES.format(lines) + text for text in item.instructions)

    def supplements(self, items: Sequence[Item], data: Path) -> list[Supplement]:
        """Return the subtitles as the only supplement.

        Raises:
            DataError: subtitles are asked for, and no video has any.
        """
        groups = {item.group for item in items}
        found = sum(self._folder(data).find(group) is not None for group in groups)
        if self.subtitles and not found:
            where = " and ".join(str(data / folder) for folder in FOLDERS)
            raise DataError(f"{where}: subtitles (VIDEOID.srt) are missing for all of {len(groups)} videos")
        return [Supplement("subtitles", found, len(groups), wanted=bool(self.subtitles), usual=_SUBTITLED)]

    def check_texts(self, items: Sequence[Item], data: Path) -> None:
        """See :class:`Benchmark`."""
        check_subtitles(self.texts(items, data))

    def texts(self, items: Sequence[Item], data: Path) -> list[Path]:
        """See :class:`Benchmark`."""
        if self.subtitles is None:
            return []
        found = map(self._folder(data).find, dict.fromkeys(item.group for item in items))
        return [path for path in found if path]

    def _folder(self, data: Path) -> SubtitleFolder:
        if data not in self._folders:
            self._folders[data] = SubtitleFolder(data)
        return self._folders[data]

    def _subtitles(self, item: Item, data: Path, num_frames: int) -> str:
        video, file = data / item.media, self._folder(data).find(item.group)
        if file is None:
            return ""
        key = video, num_frames
        if key not in self._lines:
            # The questions of a video are asked one after the other, so keeping one text is enough.
            published, cues = self.subtitles == "published", read_subtitles(file)
            self._lines = {key: subtitles_for(video, cues, num_frames, published, self.sampling)}
        return self._lines[key]

    def published_options(self, item: Item) -> Sequence[str]:
        """Return the options with their letters, which the published parser removes."""
        return item.extra["choices"]

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Write the results file for the official scorer, and the text that the scorer prints for it."""
        from videollama2.eval.report.videomme_official import official_report

        results = official_results(items, samples)
        suffix = "_sub" if self.subtitles else ""
        as_json, report = folder / f"videomme{suffix}.json", folder / f"videomme{suffix}_report.txt"
        write_atomically(as_json, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_atomically(report, official_report(results))
        return [as_json, report]


def official_results(items: Sequence[Item], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return an entry for each video; as in the published code, a video that could not be read is ``missing``."""
    by_id = {sample.id: sample for sample in samples}
    results: dict[str, dict[str, Any]] = {}
    for item in items:
        sample = by_id.get(item.id)
        if sample is None:
            continue
        entry = results.setdefault(item.extra["video_id"], {**_video(item), "questions": [], "missing": False})
        question = {
            "question_id": item.id,
            "task_type": item.extra["task_type"],
            "question": item.question,
            "choices": list(item.extra["choices"]),
            "answer": LETTERS[item.answer],
        }
        if sample.error is not None:
            entry["missing"] = True
        else:
            question["response"] = "" if sample.parsed is None else LETTERS[sample.parsed]
        entry["questions"].append(question)
    return list(results.values())


def _video(item: Item) -> dict[str, Any]:
    return {name: item.extra[name] for name in ("video_id", "youtube_id", *_VIDEO_FIELDS[1:])}


def _item(record: AnnotationEntry, videos: VideoFolder) -> Item:
    choices = record.texts("options", least=4, most=4)
    answer = record.text("answer")
    if answer not in LETTERS[:4]:
        raise record.problem("answer", f"expected one of A, B, C and D, got {answer!r}")
    youtube_id, question, task_type = record.path("videoID"), record.text("question"), record.text("task_type")
    listed = "".join(f"{choice}\n" for choice in choices)
    return Item(
        id=record.text("question_id"),
        media=videos.find(youtube_id),
        question=question,
        instruction=f"{_TASK}\n{question}\n{listed}{ONLY_THE_LETTER} The best answer is: ",
        answer=LETTERS.index(answer),
        options=tuple(_without_letter(choice, index) for index, choice in enumerate(choices)),
        category=record.text("duration"),
        group=youtube_id,
        extra={
            **{name: record.text(name) for name in _VIDEO_FIELDS},
            "youtube_id": youtube_id,
            "task_type": task_type,
            "choices": list(choices),
        },
    )


def _without_letter(choice: str, index: int) -> str:
    return choice.removeprefix(f"{LETTERS[index]}.").strip()
