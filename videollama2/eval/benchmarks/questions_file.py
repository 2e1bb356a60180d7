"""Makes a benchmark of a file: ``videollama2 eval run QUESTIONS.jsonl``.

One JSON object a line (or a JSON list of them)::

    {"id": "q1", "video": "clips/a.mp4", "start": 3.5, "end": 9, "question": "What happens?",
     "options": ["it rains", "it snows"], "answer": "B", "category": "weather"}

``video``, ``image`` and ``audio`` are a path relative to the file (or to ``--data``), or a list of them; ``start`` and
``end`` are seconds of the first video or sound. With ``"use_audio": true`` the sound of the video is heard, too. With
``options`` the answer is a letter, a number from 0 or an option's text, and the model is asked and read as in MVBench.
Without, the answer is a text or a list of texts, and a judge compares. ``id`` (else the number of the line), ``answer``
(not public), ``category``, ``prompt`` (the exact text for the model) and ``crop_start`` (the first sample that is heard
of a sound that is longer than a clip) may be absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry, check_unique, read_entries
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice, question_and_options
from videollama2.eval.benchmarks.sound_classes import crop_start
from videollama2.eval.items import Item, Parsed
from videollama2.eval.measures import Aspect
from videollama2.eval.reading.answers import LETTERS, published_mvbench
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO


class QuestionsFile(MultipleChoice):
    """See the module.

    A file holds either questions with options or open questions. It is read when the benchmark is created, because its
    kind decides whether answers are judged.

    Raises:
        DataError: the file does not exist, a line is malformed, or the file has questions of both kinds.
    """

    layout = __doc__ or ""
    published_parser = staticmethod(published_mvbench)

    def __init__(self, path: Path) -> None:
        self.source_file = path
        self.name = path.name  # the suffix distinguishes it from the paper's benchmarks
        self.title, self.folder, self.source = path.name, "", str(path)
        self._items = [_item(entry, index) for index, entry in enumerate(read_entries(path))]
        check_unique((item.id for item in self._items), path)
        kinds = {bool(item.options) for item in self._items}
        if len(kinds) > 1:
            raise DataError(
                f"{path}: has questions with options and without; they have other metrics, so split the file"
            )
        if not kinds.pop():
            self.aspects = (Aspect("qa", "qa"),)

    def default_data(self, root: Path) -> Path:
        """Return the folder of the file."""
        assert self.source_file is not None
        return self.source_file.parent

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        return self._items

    def parse(self, item: Item, output: str, protocol: str) -> Parsed | None:  # type: ignore[override]
        """See :class:`Benchmark`."""
        return super().parse(item, output, protocol) if item.options else None


def _item(entry: AnnotationEntry, index: int) -> Item:
    media = [(kind, path) for kind in (VIDEO, IMAGE, AUDIO) for path in _paths(entry, kind)]
    if not media:
        raise entry.problem(VIDEO, f"is missing, as are {IMAGE!r} and {AUDIO!r}")
    (kind, path), *others = media
    start, end = (entry.seconds(name) if entry.told(name) else None for name in ("start", "end"))
    if (start, end) != (None, None) and kind == IMAGE:
        raise entry.problem("start", "an image has no time")
    use_audio = entry.raw.get("use_audio", False)
    if not isinstance(use_audio, bool) or use_audio and (kind != VIDEO or others):
        raise entry.problem("use_audio", f"expected true or false, and true only for one video; got {use_audio!r}")
    options = entry.texts("options", least=2, most=26) if entry.told("options") else ()
    question = entry.text("question")
    prompt = question_and_options(question, options) if options else question
    return Item(
        id=entry.answer("id") if entry.told("id") else str(index),
        media=path,
        kind=kind,
        start=start,
        end=end,
        question=question,
        instruction=entry.text("prompt") if entry.told("prompt") else prompt,
        answer=_answer(entry, options),
        options=options,
        category=entry.answer("category") if entry.told("category") else "all",
        group=path,
        others=tuple(others),
        use_audio=use_audio,
        crop_start=crop_start(entry),
    )


def _paths(entry: AnnotationEntry, kind: str) -> list[str]:
    if not entry.told(kind):
        return []
    value = entry.raw[kind]
    values = value if isinstance(value, list) else [value]
    return [AnnotationEntry({kind: each}, entry.where).path(kind) for each in values]


def _answer(entry: AnnotationEntry, options: tuple[str, ...]) -> Any:
    """Return the index of the right option, the reference text or texts, or None."""
    if not entry.told("answer"):
        return None
    value = entry.raw["answer"]
    if not options:
        return list(entry.texts("answer")) if isinstance(value, list) else entry.answer("answer")
    if isinstance(value, str):
        letter = value.strip().strip("().").upper()
        if value in options:
            return options.index(value)
        if len(letter) == 1 and letter in LETTERS[: len(options)]:
            return LETTERS.index(letter)
    elif not isinstance(value, bool) and isinstance(value, int) and 0 <= value < len(options):
        return value
    raise entry.problem("answer", f"expected a letter, a number from 0 or the text of one of {len(options)} options")
