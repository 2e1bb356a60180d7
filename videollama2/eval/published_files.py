"""Reads the published code's output files, so that answers from there can be scored here.

The files are parsed as data and never evaluated as code.

| benchmark | one line or entry |
|---|---|
| mvbench | JSON lines ``{"vid", "task_type", "pred", "gt"}`` |
| egoschema | ``q_uid, index`` (CSV); needs the annotations |
| perception_test | ``{video: [{"id", "answer_id", "answer"}]}``; needs the annotations |
| videomme | the official list with ``response``; pieces with a comma after each line are read as well |
| activitynet_qa, msvd_qa | JSON lines ``{"id", "question", "answer", "pred"}`` |
| msvc | JSON lines ``{"video_name", "question", "answer": captions, "pred"}`` |
| vocalsound, tut2017, clotho_aqa, music_avqa | JSON lines ``{"id", "question", "answer", "pred"}`` |
| avsd, vggsound, clotho | the same, of videos with sound and of captions |
| videochatgpt | JSON lines ``{"video_name", "Q", "A", "P"}`` or ``{"video_name", "Q1", "Q2", "A", "P1", "P2"}`` |

A Video-ChatGPT file holds temporal questions if its name or one of the folders above it contains ``temporal``; the
published scripts write ``answers/temporal/MODEL/merge.json``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.items import PUBLISHED, Benchmark, Item, WordedBenchmark
from videollama2.eval.reading.answers import LETTERS
from videollama2.eval.report.videomme_official import official_letter
from videollama2.eval.samples import MEDIA, Reading, Sample, StoredAnswer
from videollama2.eval.scoring import make_sample


def read_published(path: Path, benchmark: Benchmark, items: Sequence[Item] = ()) -> list[Sample]:
    """Read the samples of one file.

    Args:
        path: output file of the published code.
        benchmark: benchmark that the file is about.
        items: items of the benchmark, needed for files that do not hold the right answers.

    Raises:
        DataError: the file is malformed; the message names file, line and field.
        ConfigError: the published code writes no file for the benchmark, or ``items`` are needed.
    """
    reader = _READERS.get(benchmark.name)
    if benchmark.name in _NEED_DATA and not items:
        raise ConfigError(f"{path} holds no right answers: give the benchmark's folder with --data")
    if reader is not None:
        samples = list(reader(path, items))
    elif isinstance(benchmark, WordedBenchmark):
        samples = list(_worded(path, benchmark))
    else:
        raise ConfigError(f"the published code writes no file for benchmark {benchmark.name!r}")
    if not samples:
        raise DataError(f"{path}: there is no answer in this file")
    return samples


def entries(path: Path) -> list[Any]:
    """Read a JSON list, an object, or JSON lines, which the published code may end with commas."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    try:
        whole = json.loads(text)
        # A file of one line is JSON as a whole too, so it becomes a list of one.
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        pass  # the file has JSON lines
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip().removesuffix(",")
        if line and line not in "[]{}":
            try:
                found.append(json.loads(line if line.startswith("{") else "{" + line + "}"))
            except ValueError as error:
                raise DataError(f"{path}: line {number} is not JSON ({error})") from error
    return found


def _entries(path: Path) -> list[AnnotationEntry]:
    return [AnnotationEntry(raw, f"{path}: entry {number}") for number, raw in enumerate(entries(path))]


def _chosen(name: str, category: str, group: str, parsed: int, answer: int | None, **fields: Any) -> Sample:
    """Return a multiple-choice sample.

    These files hold the option that the published parser chose and not the model's words. There is therefore no strict
    reading, and ``guessed`` is None, since a fallback cannot be recognised.
    """
    reading = Reading(parsed, None, None if answer is None else parsed == answer)
    known = {"question": None, "output": None, **fields}
    return Sample(name, category, group, answer=answer, reading=reading, protocols={PUBLISHED: reading}, **known)


def _mvbench(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    for number, record in enumerate(_entries(path)):
        video, parsed, answer = record.text("vid"), record.index("pred", 26), record.index("gt", 26)
        yield _chosen(f"{number}-{video}", record.text("task_type"), video, parsed, answer)


def _egoschema(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    answers = {item.id: item for item in items}
    with path.open(encoding="utf-8", newline="") as file:
        for number, line in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if not line or line[0].strip() == "q_uid":
                continue
            where = f"{path}: line {number}"
            if len(line) != 2 or line[1].strip() not in "01234":
                raise DataError(f"{where}: expected 'q_uid, index' with an index from 0 to 4, got {','.join(line)!r}")
            item = _known(answers, line[0].strip(), where)
            yield _chosen(item.id, item.category, item.group, int(line[1]), item.answer)


def _perception_test(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    answers = {item.id: item for item in items}
    for part in entries(path):
        for video in AnnotationEntry(part, str(path)).raw:
            for record in AnnotationEntry(part, f"{path}: {video!r}").records(video):
                item = _known(answers, f"{video}-{record.index('id', 10**9)}", record.where)
                chosen, reasoning = record.index("answer_id", 3), item.extra["reasoning"]
                yield _chosen(
                    item.id, item.category, item.group, chosen, item.answer, breakdowns={"reasoning": reasoning}
                )


def _videomme(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    for entry in _entries(path):
        group, duration = entry.text("video_id"), entry.text("duration")
        extra = {name: entry.text(name) for name in ("domain", "sub_category")}
        for record in entry.records("questions"):
            answer = LETTERS.index(record.text("answer"))
            breakdowns = {**extra, "task_type": record.text("task_type")}
            name = record.text("question_id")
            if entry.raw.get("missing"):
                yield Sample(
                    name,
                    duration,
                    group,
                    question=None,
                    answer=answer,
                    output=None,
                    breakdowns=breakdowns,
                    error="missing video",
                    error_kind=MEDIA,
                )
                continue
            response = _said(record, "response")
            letter = official_letter(response)
            parsed = LETTERS.index(letter) if letter else -1
            sample = _chosen(name, duration, group, parsed, answer, output=response, breakdowns=breakdowns)
            unread = Reading(None, None, None)  # the official scorer leaves such answers out
            yield sample if letter else replace(sample, reading=unread, protocols={PUBLISHED: unread})


def _question_answer(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    for record in _entries(path):
        name = record.text("id")
        # v_VIDEO_3 is the third question about VIDEO.
        yield _open(record, name, "all", name.rsplit("_", 1)[0], ("question", "answer", "pred"))


def _worded(path: Path, benchmark: WordedBenchmark) -> Iterable[Sample]:
    """Read a file with the model's words, in which both protocols can look for the answer."""
    for number, record in enumerate(_entries(path)):
        item = benchmark.item_of(f"{number}-{record.answer('id')}", "", record, record.answer("answer"))
        answer = StoredAnswer(item.id, _said(record, "pred"), None)
        yield make_sample(benchmark, item, answer, PUBLISHED)


def _heard(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    for number, record in enumerate(_entries(path)):
        name = record.answer("id")
        yield _open(record, f"{number}-{name}", "all", name, ("question", "answer", "pred"))


def _clotho(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    for number, record in enumerate(_entries(path)):
        name = record.text("id")
        sample = _open(record, f"{number}-{name}", "all", name, ("question", None, "pred"))
        yield replace(sample, answer=list(record.texts("answer")))


def _msvc(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    for number, record in enumerate(_entries(path)):
        video = record.text("video_name")
        sample = _open(record, f"{number}-{video}", "all", video, ("question", None, "pred"))
        yield replace(sample, answer=list(record.texts("answer")))


def _videochatgpt(path: Path, items: Sequence[Item]) -> Iterable[Sample]:
    category = "temporal" if any("temporal" in part for part in path.resolve().parts[-4:]) else "generic"
    for number, record in enumerate(_entries(path)):
        video = record.text("video_name")
        if "Q1" in record:
            sample = _open(record, f"consistency-{number}", "consistency", video, (None, "A", None))
            outputs = [_said(record, name) for name in ("P1", "P2")]
            yield replace(sample, question=[record.text("Q1"), record.text("Q2")], output=outputs)
        else:
            yield _open(record, f"{category}-{number}", category, video, ("Q", "A", "P"))


def _open(record: AnnotationEntry, name: str, category: str, group: str, fields: Sequence[str | None]) -> Sample:
    """Return the sample of an open question.

    ``fields`` are the names of the question, the answer and the output in the record; the caller fills in those that
    are None.
    """
    question, answer, output = fields
    return Sample(
        name,
        category,
        group,
        question=question and record.text(question),
        answer=answer and record.answer(answer),
        output=output and _said(record, output),
    )


def _said(record: AnnotationEntry, name: str) -> str:
    """Return what the model said; null, or no such field, is an answer without words."""
    said = record.raw.get(name)
    return "" if said is None else str(said)


def _known(items: dict[str, Item], name: str, where: str) -> Item:
    if name not in items:
        raise DataError(f"{where}: {name!r} is not a question of this benchmark")
    return items[name]


_READERS: dict[str, Callable[[Path, Sequence[Item]], Iterable[Sample]]] = {
    "mvbench": _mvbench,
    "egoschema": _egoschema,
    "perception_test": _perception_test,
    "videomme": _videomme,
    "activitynet_qa": _question_answer,
    "msvd_qa": _question_answer,
    "msvc": _msvc,
    "avsd": _heard,
    "vggsound": _heard,
    "clotho": _clotho,
    "videochatgpt": _videochatgpt,
}
_NEED_DATA = frozenset(("egoschema", "perception_test"))
