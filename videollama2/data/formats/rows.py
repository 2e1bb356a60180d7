"""Reads a JSON list or JSON Lines row by row, so that millions of rows are never in memory as objects at once."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO, cast

from videollama2.data.formats.file_formats import format_of
from videollama2.data.formats.storage import open_file
from videollama2.errors import DataError
from videollama2.stand_ins import HEAD_BYTES, stand_in

FORMS = "a JSON list of records, or JSON Lines with a record on each line, in UTF-8 or UTF-16, also gzipped"
"""Description of the formats that :func:`read_rows` supports, for messages."""

_SPACE = re.compile(r"[ \t\n\r]*")
"""The characters that JSON allows between values."""

_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_rows(file: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the unchecked rows of an annotation file.

    Its format is a JSON list, JSON Lines or one of :data:`~videollama2.data.formats.file_formats.ANNOTATION_FORMATS`.
    JSON may be compressed with gzip, whatever its name. UTF-16 is recognised by its byte order mark; otherwise the
    encoding is UTF-8.

    Raises:
        DataError: the file is missing or unreadable, or has neither form; the message names line and column. Rows
            before that position have been yielded by then.
    """
    if file_format := format_of(file):
        yield from file_format.rows(file)
        return
    if os.path.isdir(file):
        raise DataError(f"{file}: is a folder that `Dataset.save_to_disk` has not written; read is {FORMS}")
    try:
        with open_file(file) as raw, _text_of(raw, file) as stream:
            is_list = _first_mark(stream) == "["
            stream.seek(0)
            yield from _list_rows(stream, file) if is_list else _line_rows(stream, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not an annotation file ({error}); read is {FORMS}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read as an annotation file ({error})") from error
    except RecursionError as error:
        raise DataError(f"{file}: holds lists or objects nested deeper than Python's JSON reader goes") from error


def _text_of(raw: BinaryIO, file: str | os.PathLike[str]) -> TextIO:
    content = raw
    head = content.read(HEAD_BYTES)
    content.seek(0)
    if head.startswith(_GZIP):
        content = gzip.GzipFile(fileobj=raw)
        head = content.read(HEAD_BYTES)
        content.seek(0)
    if (reason := stand_in(head)) is not None:
        raise DataError(f"{file}: {reason}")
    # Some editors begin UTF-8 files with a byte order mark too.
    encoding = "utf-16" if head.startswith(_UTF16) else "utf-8-sig"
    return io.TextIOWrapper(cast("BinaryIO", content), encoding=encoding)


def _first_mark(stream: TextIO) -> str:
    while character := stream.read(1):
        if not character.isspace():
            return character
    return ""


def _list_rows(stream: TextIO, file: str | os.PathLike[str]) -> Iterator[Any]:
    text = stream.read()
    decoder, count = json.JSONDecoder(), 0
    place = _skip(text, text.index("[") + 1)
    more = text[place : place + 1] != "]"
    try:
        while more:
            row, place = decoder.raw_decode(text, place)
            yield row
            count += 1
            place = _skip(text, place)
            more = text[place : place + 1] == ","
            if more:
                place = _skip(text, place + 1)
        if text[place : place + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        if _skip(text, place + 1) != len(text):
            raise json.JSONDecodeError("Extra data", text, place + 1)
    except json.JSONDecodeError as error:
        raise _not_json(file, error, error.lineno, is_first=count == 0) from error


def _not_json(file: str | os.PathLike[str], error: json.JSONDecodeError, line: int, is_first: bool) -> DataError:
    """Return the error for a position in a file. If no row precedes it, the message lists the supported formats."""
    forms = f"; read is {FORMS}" if is_first else ""
    return DataError(f"{file}: not JSON at line {line}, column {error.colno}: {error.msg}{forms}")


def _skip(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space else place


def _line_rows(stream: TextIO, file: str | os.PathLike[str]) -> Iterator[Any]:
    # Lines end only at line feeds; str.splitlines would also split at characters that JSON allows in texts.
    is_first = True
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if is_first and _is_one_object(line + stream.read()):
                raise DataError(f"{file}: is one JSON object over several lines; read is {FORMS}") from error
            raise _not_json(file, error, number, is_first) from error
        is_first = False
        yield row


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False
