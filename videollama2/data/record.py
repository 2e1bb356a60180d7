"""Defines one record of an annotation file: its form, and the rules that it is checked by.

A record is an object::

    {"id": ..., "video" | "image" | "audio": path or list of paths, "va": true or false, "start": seconds,
     "end": seconds, "num_frames": number, "system": text, "chosen": text, "rejected": text,
     "conversations": [{"from": "human" | "gpt", "value": ...}, ...]}

A record without media is text only. Paths are relative to the data folder; a sound that is not there is looked for
at its path as it is given, as published. Whether a file is an image or a video is determined from its content, so an
image under ``video`` is treated as an image; a file under ``audio`` is always heard, also if it is a video. If a record
has several of the keys, each tag takes the next path of its own key. ``videos``, ``images`` and ``audios``, the names
that other programs use, are synonyms. ``va`` says whether the sound of the record's videos is heard too. ``start`` and
``end`` select a part of the record's videos and sounds, and ``num_frames`` is the number of its videos' frames. A text
under ``system`` (or ``system_prompt``) is placed before the conversation, as is a first turn from ``system``.
``rejected`` is a worse answer to the last question, see :mod:`videollama2.data.preferences`.
:mod:`videollama2.data.formats.row_formats` reads ``messages`` and other forms of conversations.

Unsupported keys that would change what is learned are refused by name. Others, such as the name of the source, are
allowed, and ``videollama2 data check`` counts them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from videollama2.data.formats.contents import kind_at, source_of
from videollama2.data.formats.row_formats import (
    FORM_KEYS,
    MESSAGE_KEYS,
    PROMPT_KEYS,
    published_form,
    refuse_content,
    refuse_weights,
)
from videollama2.data.formats.storage import is_member, is_store_address
from videollama2.data.preferences import PREFERENCE_KEYS, split_preference, with_one_question
from videollama2.errors import DataError, MediaError, PromptError, shown
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, KINDS, TAGS, VIDEO
from videollama2.media.sources import check_path
from videollama2.prompting import SPEAKERS, checked_turns

MEDIA_KEYS = {key: kind for kind in KINDS for key in (kind, f"{kind}s")}
"""Keys that hold media, with the kind whose tag represents each of their paths in the text."""

_SYSTEM_KEYS = ("system", "system_prompt")
_SAMPLING_KEYS = ("start", "end", "num_frames")
READ_KEYS = frozenset(
    ("id", "conversations", "va", *_SAMPLING_KEYS, *FORM_KEYS, *_SYSTEM_KEYS, *MEDIA_KEYS, *PREFERENCE_KEYS)
)
_TURN_KEYS = frozenset(("from", "value"))

_PATHS_ELSEWHERE = f"media are read from {' and '.join(map(repr, KINDS))}"
_REFUSED_KEYS = {
    **dict.fromkeys(("image_path", "video_path", "audio_path", "image_file", "video_file"), _PATHS_ELSEWHERE),
    **dict.fromkeys([f"rejected_{kind}s" for kind in KINDS], "both answers of a pair are about the same media"),
    "tools": "tools are not described to the model in training",
}
"""Keys of other formats that would change what is learned, with the reason why they are refused."""
_NOTHING = (None, "", [], {}, "[]", "{}")

_TAG = re.compile("|".join(map(re.escape, TAGS.values())))


@dataclass(frozen=True, slots=True)
class RecordMedium:
    """One file of a record.

    Attributes:
        kind: ``image``, ``video`` or ``audio``.
        path: where the file is.
        start, end: bounds of a video or a sound, in seconds.
        va: whether a video is heard as well as seen.
        num_frames: number of a video's frames; None leaves it to the model.
        counted: number of frames that a video has by rate, if it was counted (see :func:`parse_record`).
    """

    kind: str
    path: str
    start: float | None = None
    end: float | None = None
    va: bool = False
    num_frames: int | None = None
    counted: int | None = None

    def sampling(self, of_run: FrameSampling) -> FrameSampling:
        """Return the choice of a video's frames: the run's, with what the record says about this video."""
        frames = of_run.num_frames if self.num_frames is None else self.num_frames
        fps = of_run.fps if frames is None else None
        return replace(of_run, num_frames=frames, fps=fps, start=self.start, end=self.end)

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given."""
        bounds = {"start": self.start, "end": self.end}
        return {name: value for name, value in bounds.items() if value is not None}

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of what the model receives: a video that is heard is followed by its sound."""
        return (self.kind, AUDIO) if self.va else (self.kind,)


@dataclass(frozen=True, slots=True)
class Record:
    """One checked annotation.

    Attributes:
        media: in the order of their tags in ``conversations``.
        rejected: an answer to the last question that is worse than the last answer of ``conversations``.
    """

    id: str
    source: str
    media: tuple[RecordMedium, ...]
    conversations: tuple[dict[str, str], ...]
    rejected: str | None = None

    @property
    def name(self) -> str:
        """The record's name in messages: file and id."""
        return f"{self.source}: record {self.id!r}"

    @property
    def kinds(self) -> list[str]:
        return [medium.kind for medium in self.media]


def parse_record(
    raw: Any, number: int, source: str, folder: str, va: bool = False, sampling: FrameSampling | None = None
) -> Record:
    """Check one row and return its record.

    Args:
        raw: the row as read.
        number: its index in the file from 0, which names it if it has no id.
        source: the annotation file.
        folder: folder to which its media paths are relative.
        va: whether its videos are heard, unless it says so itself.
        sampling: if it takes frames by rate, those of the record's videos are counted, for which the files are opened.

    Raises:
        DataError: the row violates a rule; the message names file, record and rule.
    """
    given = raw.get("id") if isinstance(raw, dict) else None
    name = f"#{number}" if given is None else given
    try:
        if not isinstance(raw, dict):
            raise DataError(f"a record must be an object with 'conversations', got {type(raw).__name__}")
        raw, rejected = split_preference(published_form(with_one_question(raw)))
        conversations = _conversations(raw)
        _refuse_keys(raw)
        media = _media(raw, _ordered_paths(raw, conversations), folder, va)
        checked_turns(conversations, len(media))
        _refuse_blank_answers(conversations)
        if sampling is not None and sampling.by_rate:
            media = tuple(_counted(medium, sampling) for medium in media)
    except (DataError, MediaError, PromptError) as error:
        raise DataError(f"{source}: record {str(name)!r}: {error}") from error
    return Record(str(name), source, media, tuple(conversations), rejected)


def _conversations(raw: dict[str, Any]) -> list[dict[str, str]]:
    turns = raw.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"'conversations' must be a list of turns with at least one, got {shown(turns)}")
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"a turn must be an object with 'from' and 'value', got {shown(turn)}")
        refuse_weights(turn, "a turn")
    given = [key for key in _SYSTEM_KEYS if raw.get(key) not in (None, "")]
    if len(given) > 1:
        raise DataError(f"{' and '.join(map(repr, given))} mean the same: a record may have one of them")
    return [*({"from": "system", "value": raw[key]} for key in given), *turns]


def _ordered_paths(raw: dict[str, Any], conversations: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return the record's paths in the order of the tags, each with the kind that it is named under."""
    paths: dict[str, list[tuple[str, str]]] = {}
    for key, kind in MEDIA_KEYS.items():
        value = raw.get(key)
        # Other programs write an empty list under the plural names if there are no such media.
        if value is None or (key != kind and value == []):
            continue
        if kind in paths:
            raise DataError(f"{kind!r} and {key!r} mean the same: a record may have one of them")
        paths[kind] = [(kind, path) for path in _paths(value, key)]
    if len(paths) < 2:
        return next(iter(paths.values()), [])
    ordered = []
    for turn in conversations:
        for tag in _TAG.findall(str(turn.get("value"))) if SPEAKERS.get(str(turn.get("from"))) == "user" else ():
            queue = paths[tag.strip("<>")]
            if not queue:
                raise DataError(f"there are more {tag} tags than paths under {tag.strip('<>')!r}")
            ordered.append(queue.pop(0))
    for key, queue in paths.items():
        if queue:
            raise DataError(f"{len(queue)} path(s) under {key!r} have no <{key}> tag")
    return ordered


def _paths(value: Any, key: str) -> list[str]:
    paths = list(value) if isinstance(value, list) else [value]
    refuse_content(paths, key)
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{key!r} must be a path or a list of paths, got {shown(value)}")
    return paths


def _media(raw: dict[str, Any], paths: Sequence[tuple[str, str]], folder: str, va: bool) -> tuple[RecordMedium, ...]:
    bounds = {key: raw[key] for key in _SAMPLING_KEYS if raw.get(key) is not None}
    if isinstance(count := bounds.get("num_frames"), float) and count.is_integer():
        bounds["num_frames"] = int(count)  # tables keep whole numbers so where some rows have none
    if bounds:
        FrameSampling(**bounds)  # raises an error for impossible bounds
    asked = raw.get("va")
    if asked is not None and not isinstance(asked, bool):
        raise DataError(f"'va' must be true or false, got {asked!r}")
    media = []
    for named, path in paths:
        kind, full = _found(named, path, folder)
        own = {key: bounds[key] for key in KINDS[kind].options & bounds.keys()} if bounds else {}
        media.append(RecordMedium(kind, full, **own, va=kind == VIDEO and (va if asked is None else asked)))
    if bounds and bounds.keys() - {"num_frames"} and not any(medium.bounds for medium in media):
        raise DataError(f"{' and '.join(map(repr, bounds))} bound a video or a sound, and this record has none")
    if "num_frames" in bounds and not any(medium.num_frames for medium in media):
        raise DataError("'num_frames' counts the frames of a video, and this record has none")
    if asked and not any(medium.va for medium in media):
        raise DataError("'va' is true, and this record has no video that could be heard")
    return tuple(media)


def _counted(medium: RecordMedium, sampling: FrameSampling) -> RecordMedium:
    if medium.kind != VIDEO or medium.num_frames is not None:
        return medium
    from videollama2.media.video import count_frames  # imports decoders, which most commands do without

    return replace(medium, counted=count_frames(source_of(medium.path), medium.sampling(sampling)))


def _found(named: str, path: str, folder: str) -> tuple[str, str]:
    """Return the kind and the full path of the file ``path``, which the record has under the key ``named``."""
    full = path if is_store_address(path) else os.path.join(folder, path)
    if named == AUDIO and (is_member(full) or is_store_address(full)):
        kind = AUDIO
    elif named == AUDIO:
        # The published code does not join the folder before the paths of sounds.
        if not os.path.exists(full) and os.path.exists(path):
            full = path
        check_path(full)
        kind = AUDIO
    else:
        kind = kind_at(full)
    if kind == AUDIO != named:
        raise DataError(f"{full}: is a sound, which belongs under {AUDIO!r} and not under {named!r}")
    return kind, full


def _refuse_keys(raw: dict[str, Any]) -> None:
    if _REFUSED_KEYS.keys().isdisjoint(raw):
        return
    for key, reason in _REFUSED_KEYS.items():
        if raw.get(key) not in _NOTHING:
            raise DataError(f"{key!r} is not used: {reason}")


def _refuse_blank_answers(conversations: Sequence[dict[str, str]]) -> None:
    questions = 0  # an answer before the first question is dropped, see conversation_messages
    for turn in conversations:
        role = SPEAKERS[turn["from"]]
        questions += role == "user"
        if role == "assistant" and questions and not turn["value"].strip():
            raise DataError(f"answer {questions} is empty: there is nothing to learn from it")


def unread_keys(raw: Any) -> set[str]:
    """Return the keys of a row that have no effect, if it is a row of this format at all."""
    if not isinstance(raw, dict):
        return set()
    inner = set()
    for name in ("conversations", "messages"):
        turns = raw.get(name)
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict):
                known = MESSAGE_KEYS if "role" in turn else _TURN_KEYS
                inner |= {f"{name}.{key}" for key in turn.keys() - known}
    forms = {"conversations", *FORM_KEYS} & {key for key, value in raw.items() if value is not None}
    read = READ_KEYS if forms else READ_KEYS | PROMPT_KEYS
    return (raw.keys() - read - _REFUSED_KEYS.keys()) | inner
