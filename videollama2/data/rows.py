"""Rows of a JSON list or of JSON Lines, one after the other: a file of millions is never whole in memory as objects."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from videollama2.errors import DataError

_SPACE = re.compile(r"[ \t\n\r]*")
"""What JSON allows between values."""


def read_rows(file: str | os.PathLike[str]) -> Iterator[Any]:
    """The rows of one JSON list or JSON Lines file, as they are.

    Raises:
        DataError: the file is missing or unreadable, or is neither form; names line and column. Rows before that place
            have been given.
    """
    try:
        # Some editors put a mark of the encoding at the beginning.
        with Path(file).open(encoding="utf-8-sig") as stream:
            is_list = _first_mark(stream) == "["
            stream.seek(0)
            yield from _list_rows(stream, file) if is_list else _line_rows(stream, file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as an annotation file ({error})") from error


def _first_mark(stream: TextIO) -> str:
    while character := stream.read(1):
        if not character.isspace():
            return character
    return ""


def _list_rows(stream: TextIO, file: str | os.PathLike[str]) -> Iterator[Any]:
    text = stream.read()
    decoder = json.JSONDecoder()
    place = _skip(text, text.index("[") + 1)
    more = text[place : place + 1] != "]"
    try:
        while more:
            row, place = decoder.raw_decode(text, place)
            yield row
            place = _skip(text, place)
            more = text[place : place + 1] == ","
            if more:
                place = _skip(text, place + 1)
        if text[place : place + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        if _skip(text, place + 1) != len(text):
            raise json.JSONDecodeError("Extra data", text, place + 1)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error


def _skip(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _line_rows(stream: TextIO, file: str | os.PathLike[str]) -> Iterator[Any]:
    # A file's lines end at line feeds alone; str.splitlines would also cut at characters that JSON allows in texts.
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{file}: not JSON at line {number}, column {error.colno}: {error.msg}") from error
