"""Reads and writes the files of a batch: OpenAI's lines, media in a folder, and rows of Parquet files."""

from __future__ import annotations

import base64
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from videollama2.data.formats.tables import PARQUET_SUFFIXES, is_parquet, without_nulls
from videollama2.errors import ConfigError, DataError, MediaError, MissingDependencyError, first_line
from videollama2.eval.annotations import why_unreadable
from videollama2.eval.atomic import write_atomically
from videollama2.media.kinds import AUDIO, IMAGE, SUFFIXES, VIDEO, kind_of, mime_type
from videollama2.media.sources import kind_of_path

CHAT = "/v1/chat/completions"

_JSON_LINES = (".jsonl", ".ndjson")
_URL = re.compile(r"/v1/[A-Za-z0-9_./-]*")

_COLUMNS = (VIDEO, IMAGE, AUDIO)
"""Columns of a Parquet file that may hold a row's media, also in the plural: the first that has a value does."""


@dataclass(frozen=True)
class BatchLine:
    """One request.

    Attributes:
        custom_id: the caller's name for the request, unique in its file.
        url: path of the API route that handles it.
        body: the request body for this route.
    """

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class BatchReply:
    """The reply to one request: status and body as the API returned them."""

    custom_id: str
    status: int
    body: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return a line of OpenAI's output files. ``error`` repeats the error in the body of a refused request."""
        response = {"status_code": self.status, "request_id": self.body.get("id"), "body": self.body}
        error = None if self.status < 400 else self.body.get("error", {"message": f"status {self.status}"})
        return {
            "id": f"batch_req_{self.custom_id}",
            "custom_id": self.custom_id,
            "response": response,
            "error": error,
        }

    def text(self) -> str | None:
        """Return the text of the first answer, or None if there is none."""
        try:
            choice = self.body["choices"][0]
            return choice["message"]["content"] if "message" in choice else choice["text"]
        except (KeyError, IndexError, TypeError):
            return None


def read_requests(source: str, question: str | None) -> list[BatchLine]:
    """Read the requests of a JSON Lines or Parquet file, or make one request per medium of a folder, path or pattern.

    Args:
        source: a file of requests, or media about which to ask ``question``.

    Raises:
        DataError: there is no file, a line is not a request, or two requests have the same name.
    """
    path = Path(source)
    if path.suffix.lower() in _JSON_LINES:
        if question is not None:
            raise ConfigError(f"--question: the requests of {source} have questions of their own")
        lines = list(_json_lines(path))
    elif is_parquet(path):
        lines = list(_parquet_rows(path, question))
    else:
        lines = list(_media(source, question))
    seen: set[str] = set()
    for line in lines:
        if line.custom_id in seen:
            raise DataError(f"{source}: custom_id {line.custom_id!r} appears twice; answers are matched by it")
        seen.add(line.custom_id)
    if not lines:
        raise DataError(f"{source}: holds no requests")
    return lines


def check_output(path: Path) -> None:
    """Check what can be known of an output file before any request is answered.

    Raises:
        ConfigError: it is a folder, or its name ends like a file of another format.
        MissingDependencyError: it is a Parquet file, and pyarrow is not installed.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, and OUTPUT is a file of answers")
    known = (*_JSON_LINES, *PARQUET_SUFFIXES)
    if path.suffix.lower() not in known:
        raise ConfigError(f"{path}: OUTPUT must end with one of {', '.join(known)}")
    if is_parquet(path):
        _pyarrow()


def write_replies(path: Path, replies: Sequence[BatchReply]) -> None:
    """Write all replies in order, either completely or not at all. The file's suffix selects Parquet or JSON Lines.

    Raises:
        DataError: the file cannot be written.
    """
    if is_parquet(path):
        write_atomically(path, _parquet_table(replies))
        return
    lines = (json.dumps(reply.to_json(), ensure_ascii=False) + "\n" for reply in replies)
    write_atomically(path, "".join(lines).encode("utf-8", "backslashreplace"))


# -------------------------------------------------------------------------------------------------------------- JSON


def _json_lines(path: Path) -> Iterator[BatchLine]:
    try:
        content = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    for number, text in enumerate(content, start=1):
        if text.strip():
            yield _line(text, path, number)


def _line(text: bytes, path: Path, number: int) -> BatchLine:
    where = f"{path}, line {number}"
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON ({error})") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("body"), dict):
        raise DataError(f'{where}: is not a request: expected {{"custom_id": ..., "url": ..., "body": {{...}}}}')
    name, url = raw.get("custom_id"), raw.get("url", CHAT)
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: custom_id must be a text that is not empty")
    if raw.get("method", "POST") != "POST":
        raise DataError(f"{where}: method must be POST, got {raw['method']!r}")
    if not isinstance(url, str) or not _URL.fullmatch(url):
        raise DataError(f"{where}: url must be a path of the API such as {CHAT}, got {url!r}")
    try:
        return BatchLine(name, url, _with_local_files(raw["body"], path.parent))
    except (RecursionError, ValueError, OSError) as error:  # a path may hold a null byte or be too long
        raise DataError(f"{where}: is not a request ({first_line(error)})") from error


def _with_local_files(body: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the body with ``file://`` URLs in place of plain paths, which are relative to the file of requests."""

    def localised(value: Any) -> Any:
        if isinstance(value, list):
            return [localised(each) for each in value]
        if not isinstance(value, dict):
            return value
        changed = {name: localised(each) for name, each in value.items()}
        for name in ("image_url", "video_url", "audio_url"):
            given = changed.get(name)
            if isinstance(given, str):
                changed[name] = {"url": _file_url(given, folder)}
            elif isinstance(given, dict) and isinstance(given.get("url"), str):
                changed[name] = {**given, "url": _file_url(given["url"], folder)}
        return changed

    return {**body, "messages": localised(body["messages"])} if "messages" in body else body


def _file_url(url: str, folder: Path) -> str:
    if url.startswith("file:///"):
        # Programs often write the name as it is, where an address would have %20 for a blank.
        named = Path(url.removeprefix("file://"))
        return named.as_uri() if named.exists() else url
    is_path = url[:5].lower() != "data:" and "://" not in url
    return (folder / url).resolve().as_uri() if is_path else url


# ------------------------------------------------------------------------------------------------------------- media


def _media(source: str, question: str | None) -> Iterator[BatchLine]:
    """Yield one request for every medium in a folder, or that a path or pattern names."""
    if question is None:
        raise DataError(f"{source}: is not a .jsonl or .parquet file; for media, give --question")
    path = Path(source)
    suffixes = frozenset().union(*SUFFIXES.values())
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix.lower() in suffixes]
        base = path
    else:
        # A file may be called like a pattern that does not find it: clip[1].mp4.
        names = [source] if path.is_file() else sorted(glob.glob(source, recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
        base = Path()
    if not files:
        raise DataError(f"{source}: there are no videos, images or sounds")
    for file in files:
        name = file.relative_to(base).as_posix() if base != Path() else file.as_posix()
        yield BatchLine(name, CHAT, _question_about([_of_path(file)], question))


def _of_path(file: Path) -> tuple[str, str]:
    """Return the kind and the URL of a file."""
    return _kind(partial(kind_of_path, file)), file.resolve().as_uri()


def _kind(look: Callable[[], str]) -> str:
    """Return the kind that ``look`` finds. What cannot be read counts as a video: its request fails, and no other."""
    try:
        return look()
    except MediaError:
        return VIDEO


def _question_about(media: Iterable[tuple[str, str]], question: str) -> dict[str, Any]:
    """Return the body of a question about media, of each of which the kind and the URL are given."""
    parts = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}} for kind, url in media]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]}


# ----------------------------------------------------------------------------------------------------------- Parquet


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("Parquet files need pyarrow", "[data]") from error
    return pyarrow


def _parquet_rows(path: Path, question: str | None) -> Iterator[BatchLine]:
    """Yield the rows with ``body`` (JSON text or a struct), or with media in one of the columns and ``question``."""
    for number, row in enumerate(_rows(path), start=1):
        names = (row.get(name) for name in ("custom_id", "id"))
        name = str(next((value for value in names if value is not None), number))
        url = str(row.get("url") or CHAT)
        if not _URL.fullmatch(url):
            raise DataError(f"{path}, row {number}: url must be a path of the API such as {CHAT}, got {url!r}")
        yield BatchLine(name, url, _row_body(row, path, number, question))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    pyarrow = _pyarrow()
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def _row_body(row: dict[str, Any], path: Path, number: int, question: str | None) -> dict[str, Any]:
    where = f"{path}, row {number}"
    if row.get("body") is not None:
        return _body(row["body"], path.parent, where)
    asked = row.get("question") or question
    column = next((name for each in _COLUMNS for name in (each, f"{each}s") if row.get(name)), None)
    if column is None or not isinstance(asked, str):
        raise DataError(f"{where}: needs a body, or a medium ({', '.join(_COLUMNS)}) and a question (--question)")
    cell = row[column]
    is_sound = column.removesuffix("s") == AUDIO
    media = [_medium(each, path.parent, where) for each in (cell if isinstance(cell, list) else [cell])]
    # Whether something is an image or a video is up to the file; under AUDIO, a video is only heard.
    return _question_about([(AUDIO if is_sound else kind, url) for kind, url in media], asked)


def _body(body: Any, folder: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(body) if isinstance(body, str) else without_nulls(body)
        if not isinstance(found, dict):
            raise TypeError(f"it is a {type(found).__name__}")
        return _with_local_files(found, folder)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: body is not a JSON object ({error})") from error


def _medium(value: Any, folder: Path, where: str) -> tuple[str, str]:
    """Return the kind and the URL of a medium: a path, its content, or a struct of both as ``datasets`` stores it."""
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, bytes):
        kind = _kind(partial(kind_of, content, name or ""))
        return kind, f"data:{mime_type(kind, '')};base64,{base64.b64encode(content).decode('ascii')}"
    file = name if content is None else content
    if not isinstance(file, str):
        raise DataError(f"{where}: the medium is neither a path nor bytes")
    return _of_path(folder / file)


def _parquet_table(replies: Sequence[BatchReply]) -> bytes:
    pyarrow = _pyarrow()
    columns = {
        # A name from a line of JSON may hold half a character, which Arrow's texts cannot.
        "custom_id": [reply.custom_id.encode("utf-8", "backslashreplace").decode() for reply in replies],
        "answer": [reply.text() for reply in replies],
        "status_code": [reply.status for reply in replies],
        "error": [json.dumps(reply.to_json()["error"]) if reply.status >= 400 else None for reply in replies],
        "response": [json.dumps(reply.body, ensure_ascii=True) for reply in replies],
    }
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()
