"""Video-MMMU: what is learnt from lectures of 30 subjects (arXiv 2501.13826).

There are three questions about each video, one of each track: perception, comprehension and adaptation. A few questions
of the last track are open; their answers are compared as numbers or texts, without a judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry, check_unique, read_annotation_json, read_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Parsed
from videollama2.eval.reading.answers import LETTERS, strict_option
from videollama2.eval.reading.strict import after_thinking
from videollama2.eval.samples import Reading

TRACKS = ("Perception", "Comprehension", "Adaptation")
_GROUPS = {
    "Art": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities": "History Literature Psychology Sociology",
    "Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
    "Mechanical_Engineering",
}
_GROUP = {subject: name for name, subjects in _GROUPS.items() for subject in subjects.split()}
_ID = re.compile(r"[^_]+_(?P<subject>.+?)_\d+")

_ADAPT = (
    "You should watch and learn the video content. Then apply what you learned to answer the following {kind} "
    "question. The image for this question is at the end of the video.\n"
)
_IGNORE = "\nPlease ignore the Quiz question in last frame of the video."

_LEADS = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ", "in total ", "total "),
    *("identify ", "recognize ", "calculated as ", "counted as ", "measured as ", "observed as ", "concluded as "),
    *("found to be ", "equals ", "determined to be ", "number of ", "value is ", "adds up to ", "have ", "has "),
)
"""Words before a result; what follows the last occurrence of any of them may be the answer."""
_MARKS = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)

Value = str | float


def published_choice(output: str, options: Sequence[str]) -> Parsed:
    """Read the option as lmms-eval does: the first of these forms that occurs with any letter, also inside a word.

    The forms are "A." or "A:" (both are searched for, and of several letters the dots decide), then "(A)", then "A"
    before a blank, and in an answer of more than five words the words of an option. Of several, the last one counts.
    """
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        output = output.strip(mark)
    output = f" {output} "
    letters = LETTERS[: len(options)]
    dotted, before_colon = ([letter for letter in letters if f"{letter}{mark}" in output] for mark in (".", ":"))
    if dotted or before_colon:
        found, form = [*dotted, *before_colon], "{}." if dotted else "{}:"
    elif found := [letter for letter in letters if f"({letter})" in output]:
        form = "({})"
    else:
        found, form = [letter for letter in letters if f"{letter} " in output], " {} "
    if found:
        return Parsed(letters.index(max(found, key=lambda letter: output.rfind(form.format(letter)))))
    lowered = output.lower()
    told = [index for index, option in enumerate(options) if option.lower() in lowered]
    if told and len(output.split()) > 5:
        return Parsed(max(told, key=lambda index: lowered.rfind(options[index].lower())))
    return Parsed(None)


def published_values(output: str) -> set[Value]:
    """Return the numbers and texts that lmms-eval takes from an open answer, any of which may be the right one.

    They are the shortest ends of lines after one of :data:`_LEADS`, or else the whole answer, and all numbers in these.
    """
    lines = output.strip().strip(".").lower().split("\n")
    ends = []
    for number, line in enumerate(lines):
        leads = [*_LEADS, "="] if number == len(lines) - 1 else _LEADS
        found = [line.split(lead)[-1].strip() for lead in leads if lead in line]
        shortest = _shortest(found)
        if shortest and shortest not in _MARKS:
            ends.append(shortest)
    texts = ends or ["\n".join(lines)]
    numbers = [number for text in texts for pattern in _NUMBERS for number in pattern.findall(text)]
    return {value for text in (*texts, *numbers) for value in _values(text)}


def _shortest(texts: Sequence[str]) -> str:
    """Return the first of the shortest texts; as in lmms-eval, an empty one is replaced by the next, whatever it is."""
    chosen = ""
    for text in texts:
        if not chosen or len(text) < len(chosen):
            chosen = text
    return chosen


def _values(text: str) -> tuple[Value, ...]:
    """Return a number to two decimals, or the text in small letters; a single letter counts only beside a blank."""
    text = text.strip()
    try:
        return (round(float(text.replace(",", "")), 2),)
    except ValueError:
        text = text.lower()
        return (f" {text}", f"{text} ") if len(text) == 1 else (text,)


def published_equal(found: set[Value], answer: str) -> bool:
    """Whether a value read from an answer equals the reference number, or holds the reference text."""
    wanted = _values(answer)
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in found)


def strict_value(output: str, answer: str) -> Value | None:
    """Return what an open answer gives where ``answer`` is wanted, or None if it gives nothing or too much.

    After the model's reasoning, one number must stand there if a number is wanted, and otherwise the wanted words.
    """
    text = after_thinking(output).lower()
    (wanted, *_) = _values(answer)
    if isinstance(wanted, str):
        words = answer.strip().lower()
        return words if re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) else text.strip() or None
    numbers = {value for pattern in _NUMBERS for number in pattern.findall(text) for value in _values(number)}
    return numbers.pop() if len(numbers) == 1 else None


class VideoMMMU(Benchmark):
    """See the module.

    The prompts are the official ones, and the ``published`` reading is that of lmms-eval's task for the leaderboard
    (``parse_videommmu_multi_choice_response`` and ``parse_open_response``; version 0.7.3 reads letters by a rule common
    to all its tasks). An empty answer, which that task leaves out of the mean, is wrong here. A question with options
    is multiple choice, also where the table has no question type.
    """

    name = "videommmu"
    title = "Video-MMMU"
    folder = "videommmu"
    questions = 900
    source = "https://github.com/videommmu/VideoMMMU; https://huggingface.co/datasets/lmms-lab/VideoMMMU"
    layout = """\
TRACK/test-*.parquet     a table of id, question, options (texts), answer (a letter, or the answer to an open question);
                         TRACK is Perception, Comprehension or Adaptation; in its place, of the official repository:
                         perception_video.json {"Perception": {NUMBER: {"id", "question", "options", "answer"}}}, ...
GROUP/ID.mp4             the videos (or another kind of video); GROUP is Art, Business, Engineering, Humanities,
                         Medicine or Science"""
    annotations = tuple(
        pattern for track in TRACKS for pattern in (f"{track}/test-*.parquet", f"{track.lower()}_video.json")
    )
    breakdowns = ("discipline",)
    max_new_tokens = 1024

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`; tracks without a file are left out, and the report counts the questions asked."""
        videos = VideoFolder(data, ".", "videos")
        items = [_item(entry, track, videos) for track in TRACKS for entry in _entries(data, track)]
        if not items:
            raise DataError(f"{data / self.annotations[0]}: is missing (as are {', '.join(self.annotations[1:])})")
        check_unique((item.id for item in items), data)
        return items

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`; an open answer gives a text or number, under ``published`` several texts."""
        if item.options:
            read = published_choice if protocol == PUBLISHED else strict_option
            return read(output, item.options)
        if protocol == PUBLISHED:
            return Parsed(sorted(map(str, published_values(output))) if output else None)
        return Parsed(strict_value(output, item.answer))

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """See :class:`Benchmark`."""
        if item.options:
            return super().read(item, output, protocol)
        value = self.parse(item, output, protocol).value
        if protocol == PUBLISHED:
            return Reading(value, False, bool(output) and published_equal(published_values(output), item.answer))
        return Reading(value, False, value == strict_value(item.answer, item.answer))


def _entries(data: Path, track: str) -> Iterator[AnnotationEntry]:
    path = data / f"{track.lower()}_video.json"
    if not path.is_file():
        for table in sorted(data.glob(f"{track}/test-*.parquet")):
            yield from read_entries(table)
        return
    rows = AnnotationEntry(read_annotation_json(path, dict), str(path)).record(track)
    for number in rows.raw:
        yield rows.record(number)


def _item(entry: AnnotationEntry, track: str, videos: VideoFolder) -> Item:
    name, question = entry.path("id"), entry.text("question")
    matched = _ID.fullmatch(name)
    group = _GROUP.get(matched["subject"]) if matched else None
    if group is None:
        raise entry.problem("id", f"expected SPLIT_SUBJECT_NUMBER with one of the 30 subjects, got {name!r}")
    options = entry.texts("options", least=0, most=len(LETTERS)) if entry.told("options") else ()
    answer: int | str = entry.answer("answer").strip()
    if options:
        if answer not in LETTERS[: len(options)]:
            raise entry.problem("answer", f"expected a letter from A to {LETTERS[len(options) - 1]}, got {answer!r}")
        answer = LETTERS.index(answer)
    return Item(
        id=f"{track.lower()}-{name}",
        media=videos.find(f"{group}/{name}"),
        kind="video",
        start=None,
        end=None,
        question=question,
        instruction=_prompt(track, question, options),
        answer=answer,
        options=options,
        category=track,
        group=name,
        extra={"discipline": group},
    )


def _prompt(track: str, question: str, options: Sequence[str]) -> str:
    labels = [f"{letter}." for letter in LETTERS[: len(options)]]
    if not all(map(str.startswith, options, labels)):
        options = list(map("{} {}".format, labels, options))
    asked = "\n".join([question, *options])
    if track != "Adaptation":
        return f"{asked}{_IGNORE}"
    return _ADAPT.format(kind="multi-choice" if options else "open-ended") + asked
