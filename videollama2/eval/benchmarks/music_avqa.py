"""MUSIC-AVQA, test set: questions about performances of music that need sight and hearing (arXiv 2203.14072)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.benchmarks.heard_videos import HeardVideos, heard_item
from videollama2.eval.benchmarks.short_answers import ShortAnswers
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item

_HOLE = re.compile(r"<[^<>]+>")


class MusicAVQA(ShortAnswers, HeardVideos):
    """See the module. The published file lacks 56 of the 9,185 questions of the official test set."""

    name = "music_avqa"
    title = "MUSIC-AVQA"
    folder = "AVQA_music"
    questions = 9129
    source = "https://github.com/GeWu-Lab/MUSIC-AVQA"
    layout = """\
AVQA_music_test.json     a list of {"video": path, of which the end counts, "conversations": [{"value": question},
                         {"value": answer}]}; in its place, of the official repository: avqa-test.json
MUSIC-AVQA-videos/       VIDEO.mp4; or, as unpacked: MUSIC-AVQA-videos-Real/ and MUCIS-AVQA-videos-Synthetic/"""
    annotations = ("AVQA_music_test.json", "avqa-test.json")
    folders = (
        "MUSIC-AVQA-videos",
        "MUSIC-AVQA-videos-Real",
        "MUCIS-AVQA-videos-Synthetic",  # the archive is spelt like this
        "MUSIC-AVQA-videos-Synthetic",
        "videos",
    )

    def item(self, entry: AnnotationEntry, index: int, videos: VideoFolder) -> Item:
        """See :class:`HeardVideos`; a record of the official file has a template and the words for its gaps."""
        if "question_content" not in entry:
            return super().item(entry, index, videos)
        question, words = entry.text("question_content").strip(), _listed(entry, "templ_values")
        if len(_HOLE.findall(question)) != len(words):
            raise entry.problem("templ_values", f"expected a word for each gap of {question!r}, got {words!r}")
        given = iter(words)
        question = _HOLE.sub(lambda _: next(given), question)
        kind = " ".join(_listed(entry, "type")) if entry.told("type") else "all"
        media = videos.find(AnnotationEntry({"video": entry.answer("video_id")}, entry.where).path("video"))
        return heard_item(index, media, question, entry.answer("anser"), kind)

    def item_of(self, id: str, media: str, record: AnnotationEntry, answer: str) -> Item:
        """See :class:`WordedBenchmark`."""
        return replace(heard_item(0, media, record.text("question"), answer), id=id, group=media or id)


def _listed(entry: AnnotationEntry, name: str) -> list[str]:
    """Return a list of texts, which the official file holds as JSON inside a text."""
    value: Any = entry.raw.get(name)
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise entry.problem(name, f"expected a list written as JSON, got {value!r}") from error
    return list(AnnotationEntry({name: value}, entry.where).texts(name, least=0))
