"""Stores answers on disk, safe against a process being killed at any moment.

    OUTPUT/run.json                            the run's configuration and its hash, which distinguishes runs
    OUTPUT/model.json                          facts that are known once the model is loaded
    OUTPUT/answers/rank-00002-of-00008.jsonl   one line per answer, written by one process
    OUTPUT/samples.jsonl, results.*            made from the answers when all of them are there

A question counts as answered only when its line is on the disk. If a process is killed while it writes a line, the line
has no newline at its end; it is not read, and it is cut off when the process's file is written again. The processes of
one evaluation share the folder. While one of them runs, an evaluation with another number of processes is refused,
because it would ask the same questions again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from videollama2.errors import ConfigError, DataError, some_of
from videollama2.eval.annotations import why_unreadable
from videollama2.eval.atomic import write_atomically
from videollama2.eval.samples import Sample, StoredAnswer

RUN_FILE, MODEL_FILE, SAMPLES_FILE, ANSWER_FOLDER = "run.json", "model.json", "samples.jsonl", "answers"
_PROCESSES = ".processes-*.lock"


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """Return a hash that is the same for equal configurations on every machine."""
    text = json.dumps(configuration, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class AnswerStore:
    """The output folder of one run.

    Args:
        folder: output folder, which is created if it does not exist.
        configuration: everything on which answers depend; a folder with answers of another configuration is refused.
        about: further facts for run.json that do not distinguish runs, such as the path of the data.

    Raises:
        ConfigError: the folder belongs to another configuration, or cannot be written.
    """

    def __init__(self, folder: str | Path, configuration: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.answers = self.folder / ANSWER_FOLDER
        self.hash = configuration_hash(configuration)
        content = {"hash": self.hash, "configuration": dict(configuration), "about": dict(about)}
        try:
            self.answers.mkdir(parents=True, exist_ok=True)
            # All processes of a run begin at once. One of them creates the file; the others compare themselves with it
            # below.
            _create(self.folder / RUN_FILE, _text_of(content))
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be used as output folder ({error.strerror or error})") from error
        except DataError as error:
            raise ConfigError(f"{folder}: cannot be used as output folder: {error}") from error
        former = read_run(self.folder)
        if former["hash"] != self.hash and self._is_unused():
            # A run with a slip in its command may have ended before its first answer, which reserves nothing.
            write_atomically(self.folder / RUN_FILE, _text_of(content))
            former = read_run(self.folder)
        if former["hash"] != self.hash:
            difference = _difference(former["configuration"], configuration)
            raise ConfigError(f"{folder} holds answers of another configuration ({difference}): choose another folder")

    def _is_unused(self) -> bool:
        """Whether the folder has no answer, and no process that is going to write one."""
        answers = (path.stat().st_size for path in self.answers.glob("*.jsonl"))
        return not any(answers) and not any(map(_is_held, self.folder.glob(_PROCESSES)))

    def read(self) -> dict[str, StoredAnswer]:
        """Return all stored answers by id.

        A later answer replaces one that failed. Otherwise the first of several answers to a question counts, in the
        order of files and lines; two simultaneous evaluations may have written both.

        Raises:
            DataError: a line is damaged, or an answer belongs to another configuration.
        """
        found: dict[str, StoredAnswer] = {}
        for path in sorted(self.answers.glob("*.jsonl")):
            for number, line in _lines(path):
                # Each line says of which configuration it is, because a shard may have been copied into this folder by
                # hand.
                if line.get("config") != self.hash:
                    raise DataError(f"{path}: line {number} is not of configuration {self.hash}")
                answer = StoredAnswer.from_json(line)
                if answer.id not in found or found[answer.id].error is not None:
                    found[answer.id] = answer
        return found

    def merge(self, ids: Sequence[str]) -> tuple[list[StoredAnswer], list[str]]:
        """Return the answers in the order of ``ids``, and the ids without an answer.

        Raises:
            DataError: see :meth:`read`; or there is an answer to a question that was not asked.
        """
        found = self.read()
        surplus = sorted(set(found) - set(ids))
        if surplus:
            names = some_of([repr(name) for name in surplus])
            raise DataError(f"{self.answers}: answers to questions that are not in this run: {names}")
        return [found[name] for name in ids if name in found], [name for name in ids if name not in found]

    @contextmanager
    def shard(self, rank: int, world: int) -> Iterator[ShardWriter]:
        """Open and lock the file of one process for appending.

        Raises:
            ConfigError: another process writes the file, or an evaluation with another number of processes is running.
        """
        path = self.answers / f"rank-{rank:05d}-of-{world:05d}.jsonl"
        with self._among(world), path.open("ab", buffering=0) as file:  # unbuffered, so that closing writes nothing
            if not _lock(file):
                raise ConfigError(f"{path}: is being written by another process; the same evaluation runs already")
            # A process that was killed while it wrote leaves half a line, which the next answer would be appended to.
            _cut_torn_line(path, file)
            yield ShardWriter(file, self.hash)

    @contextmanager
    def _among(self, world: int) -> Iterator[None]:
        """Count as one of ``world`` processes in this folder while the block runs.

        Each of these processes holds a shared lock on the file ``.processes-WORLD.lock``. If a file of another number
        is locked, an evaluation with that many processes is running. A process looks at the other files and takes its
        lock under an exclusive lock, so that two processes cannot both look before either takes its own.
        """
        own = self.folder / f".processes-{world:05d}.lock"
        with own.open("ab") as file:
            with (self.folder / ".processes.lock").open("ab") as turn:  # one process at a time
                _lock(turn, wait=True)
                for path in sorted(self.folder.glob(_PROCESSES)):
                    if path != own and _is_held(path):
                        others = int(path.stem.rpartition("-")[2])
                        raise ConfigError(
                            f"{self.folder}: an evaluation with {others} process{'es' * (others > 1)} runs in this "
                            f"folder; wait for it, or choose another folder for {world}"
                        )
                _lock(file, shared=True)
            yield

    @contextmanager
    def merging(self) -> Iterator[bool]:
        """Lock the merging of results; the value is False if another process is merging."""
        with (self.folder / ".merge.lock").open("ab") as file:
            yield _lock(file)

    def write_model(self, facts: Mapping[str, Any]) -> None:
        """Write facts that are known once the model is loaded, for the process that reports."""
        write_atomically(self.folder / MODEL_FILE, json.dumps(dict(facts), indent=1) + "\n")

    def read_model(self) -> dict[str, Any]:
        """Return the facts of :meth:`write_model`, or an empty dictionary if no model has been loaded."""
        return read_model(self.folder)


class ShardWriter:
    """A writer that appends answers to one file; each answer is on the disk when :meth:`append` returns."""

    def __init__(self, file: BinaryIO, configuration: str) -> None:
        self._file, self._configuration = file, configuration

    def append(self, answer: StoredAnswer) -> None:
        """Write one answer.

        Raises:
            DataError: the answer cannot be written; earlier answers are unchanged.
        """
        line = json.dumps({"config": self._configuration, **answer.to_json()}, ensure_ascii=False) + "\n"
        left = memoryview(line.encode("utf-8", "backslashreplace"))
        try:
            while left:
                left = left[self._file.write(left) :]
            # An answer takes seconds to minutes to compute and a thousandth of that to reach the disk.
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f"{self._file.name}: cannot be written ({error.strerror or error})") from error


def read_run(folder: Path) -> dict[str, Any]:
    """Read the run.json of an output folder.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder} is not a folder of an evaluation: {path} {why_unreadable(error)}") from error
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error})") from error
    if not isinstance(content, dict) or not {"hash", "configuration", "about"} <= set(content):
        raise DataError(f"{path}: is not the description of an evaluation")
    return content


def read_model(folder: Path) -> dict[str, Any]:
    """Read the model.json of an output folder; the result is empty if there is none."""
    path = folder / MODEL_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_samples(folder: Path, samples: Iterable[Sample]) -> Path:
    """Write samples as JSON lines, atomically, and return the file's path."""
    path = folder / SAMPLES_FILE
    text = "".join(json.dumps(sample.to_json(), ensure_ascii=False) + "\n" for sample in samples)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))
    return path


def read_samples(path: Path) -> dict[str, Sample]:
    """Read the samples by id from an output folder or its samples.jsonl.

    Raises:
        DataError: there are no samples, or a question occurs twice.
    """
    file = path / SAMPLES_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file; is the evaluation finished?")
    samples: dict[str, Sample] = {}
    for number, line in enumerate(read_json_lines(file), start=1):
        if not isinstance(line, dict) or not {"id", "group", "protocols"} <= set(line):
            raise DataError(f"{file}: line {number} is not a sample of an evaluation")
        if line["id"] in samples:
            raise DataError(f"{file}: line {number} repeats question {line['id']!r}")
        samples[line["id"]] = Sample.from_json(line)
    return samples


def read_json_lines(path: Path) -> list[Any]:
    """Read a file of JSON lines.

    Raises:
        DataError: the file cannot be read, or a line, which the message names, is not JSON.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}: line {number} is not JSON ({error})") from error
    return rows


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the complete lines of a file with their numbers; text after the last newline is a torn line."""
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is damaged ({error}); delete that line and run again") from error
        if not isinstance(answer, dict) or not {"id", "output", "error"} <= set(answer):
            raise DataError(f"{path}: line {number} is not an answer; delete that line and run again")
        yield number, answer


def _cut_torn_line(path: Path, file: BinaryIO) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


def _lock(file: BinaryIO, shared: bool = False, wait: bool = False) -> bool:
    """Lock a file until it is closed or the process ends; return False if another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; there the first of two answers counts, see AnswerStore.read
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is_held(path: Path) -> bool:
    with path.open("ab") as file:
        return not _lock(file)


def _create(path: Path, text: str) -> None:
    """Create a file atomically unless it exists; of several processes one succeeds, and all then see its content."""
    if path.exists():
        return
    # A link to a finished file appears whole or not at all, and only if the name is free. A file that was opened for
    # exclusive creation could be read by others while it is still empty.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_atomically(temporary, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # the file system has no links; then the last process wins, with the same content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _text_of(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _difference(former: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in {**former, **now} if former.get(key) != now.get(key)]
    return ", ".join(f"{key}: {former.get(key)!r} there, {now.get(key)!r} here" for key in keys)
