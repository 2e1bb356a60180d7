"""One way to run a command: errors in one line with exit code 2, ``--debug``, Ctrl-C and pipes that nobody reads.

A command's ``main`` parses with a :class:`CommandParser` and hands the work to :func:`run_command`::

    args = build_parser().parse_args(arguments)
    return run_command(lambda: work(args), "controller", args.debug)

Exit codes: 0, or what the command returns; 2 after an error that the user can mend; 130 after Ctrl-C; 141 where the
reader of the output has gone, as for any program that dies of SIGPIPE.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

from videollama2.errors import VideoLlama2Error

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def one_line(error: object) -> str:
    """The text of an error in one line; file names and messages of libraries may hold line breaks."""
    return " ".join(str(error).splitlines())


def run_command(
    run: Callable[[], int | None],
    name: str | None = None,
    debug: bool = False,
    errors: tuple[type[Exception], ...] = (VideoLlama2Error,),
    describe: Callable[[Exception], str] = str,
) -> int:
    """Run a command's work and turn the ways in which it may end into an exit code.

    Args:
        run: the work; it returns the exit code, or None for 0.
        name: what the line of an error begins with; None: just ``error:``.
        debug: let an error through with its traceback.
        errors: exceptions that are told in one line.
        describe: error -> its message, where the text of the exception is not the message alone.
    """
    prefix = "error:" if name is None else f"{name}: error:"
    try:
        with _plain_warnings(name, debug):
            code = run() or 0
    except errors as error:
        if debug:
            raise
        code = _complain(prefix, describe(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # Another pipe may have broken, one to a process of ours: that would be a fault, and is shown as one.
        if not any(_has_no_reader(stream) for stream in (sys.stdout, sys.stderr)):
            raise
        flush_output()
        return BROKEN_PIPE
    try:
        return code if flush_output() else BROKEN_PIPE
    except OSError as error:
        _discard(sys.stdout)
        return _complain(prefix, f"the standard output cannot be written ({error.strerror})")


@contextmanager
def _plain_warnings(name: str | None, debug: bool) -> Iterator[None]:
    """Warnings in one line each, without the line of code they come from; the same one is shown once.

    Those of what a library will change are left out, unless ``debug`` is set: a user can do nothing about them.
    """
    prefix = "warning:" if name is None else f"{name}: warning:"
    before, shown = warnings.formatwarning, set[str]()

    def format_once(message: Warning | str, *_: Any, **__: Any) -> str:
        line = one_line(message)
        is_new = line not in shown
        shown.add(line)
        return f"{prefix} {line}\n" if is_new else ""

    warnings.formatwarning = format_once
    try:
        with warnings.catch_warnings():
            if not debug:
                # Appended: what a user says with -W or PYTHONWARNINGS comes first.
                warnings.simplefilter("ignore", FutureWarning, append=True)
            yield
    finally:
        warnings.formatwarning = before


def _complain(prefix: str, message: str) -> int:
    try:
        print(prefix, one_line(message), file=sys.stderr, flush=True)
    except BrokenPipeError:
        _discard(sys.stderr)
    return USER_ERROR


def flush_output() -> bool:
    """Write what is buffered of the standard streams; False where the reader of one has gone.

    Raises:
        OSError: the output cannot be written for another reason, such as a full disk.
    """
    is_read = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            _discard(stream)
            is_read = False
    return is_read


def _has_no_reader(stream: Any) -> bool:
    """Whether a standard stream is a pipe or socket whose other end is closed; flushing tells it of buffered ones."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):
        return False
    if not hasattr(select, "poll"):
        return not flush_output()
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard(stream: Any) -> None:
    """Send the rest of a stream nowhere: Python flushes once more when it ends, and would complain then."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def hides_bar(progress: bool) -> bool | None:
    """What tqdm is told as ``disable``: None where a bar is wanted, so that it shows on terminals and not in files."""
    return None if progress else True


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``, which every command has."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


class CommandParser(argparse.ArgumentParser):
    """A parser that complains in one line, and names the flag that was probably meant.

    The parsers of subcommands are of this class too, so that an unknown flag is told by the subcommand which was given
    it, instead of by the command above, which knows none of its flags.
    """

    _words: str | None = None

    def take_words_anywhere(self, dest: str) -> None:
        """Let the words of a positional argument with ``nargs="*"`` stand before, between and after flags."""
        self._words = dest

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :meth:`argparse.ArgumentParser.parse_known_args`; here, nothing unknown is handed back."""
        args = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:
            # Before anything else: a required flag that is misspelt would be told as missing.
            self._check_spelling(args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if self._words is not None:
            # argparse fills the positional arguments from the words before the first flag, and hands back the others.
            getattr(parsed, self._words).extend(word for word in unknown if word == "-" or not word.startswith("-"))
            unknown = [word for word in unknown if word.startswith("-") and word not in ("-", "--")]
        if unknown:
            self.error(f"unexpected arguments: {' '.join(unknown)}")
        return parsed, unknown

    def _check_spelling(self, args: Sequence[str]) -> None:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in args[: args.index("--")] if "--" in args else args:
            flag = word.partition("=")[0]
            if flag.startswith("--") and not any(name.startswith(flag) for name in known):
                close = get_close_matches(flag, known, n=1)
                self.error(f"there is no flag {flag}" + (f"; did you mean {close[0]}?" if close else ""))

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line."""
        self.exit(USER_ERROR, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process; that nobody reads the help any more is no error."""
        if message:
            self._print_message(message, sys.stderr)
        flush_output()
        sys.exit(status)
