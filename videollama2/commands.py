"""Runs the commands of the package in one way: one-line errors with exit code 2, ``--debug``, Ctrl-C and closed pipes.

A command's ``main`` parses with a :class:`CommandParser` and passes its work to :func:`run_command`::

    args = build_parser().parse_args(arguments)
    return run_command(lambda: work(args), "controller", args.debug)

Exit codes: 0, or the value that the command returns; 2 after an error that the user can correct; 130 after Ctrl-C; 141
if the reader of the output has closed its pipe, as for any program that dies of SIGPIPE.
"""

from __future__ import annotations

import argparse
import io
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

from videollama2.errors import VideoLlama2Error
from videollama2.garbage_collection import end_without_search
from videollama2.quiet import quiet_libraries

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def one_line(error: object) -> str:
    """Return the text of an error on one line, since file names and library messages may hold line breaks."""
    return " ".join(str(error).splitlines())


def run_command(
    run: Callable[[], int | None],
    name: str | None = None,
    debug: bool = False,
    errors: tuple[type[Exception], ...] = (VideoLlama2Error,),
    describe: Callable[[Exception], str] = str,
) -> int:
    """Run a command's work and turn the ways in which it may end into an exit code.

    Libraries are kept quiet meanwhile, see :func:`videollama2.quiet.quiet_libraries`.

    Args:
        run: the work; it returns the exit code, or None for 0.
        name: prefix of the error line; None prints only ``error:``.
        debug: whether to let errors through with their traceback, and hints of libraries.
        errors: exceptions that are reported on one line.
        describe: returns the message of an error, for exceptions whose text is more than the message.
    """
    end_without_search()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on the standard error: names of files and answers may have characters that the output cannot take.
        sys.stdout.reconfigure(errors="backslashreplace")
    prefix = "error:" if name is None else f"{name}: error:"
    try:
        with quiet_libraries(debug), _plain_warnings(name, debug):
            code = run() or 0
    except errors as error:
        if debug:
            raise
        code = _complain(prefix, describe(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # A different pipe may have broken, for example to a child process. That is a fault and is shown as one.
        if not any(_has_no_reader(stream) for stream in (sys.stdout, sys.stderr)):
            raise
        flush_output()
        return BROKEN_PIPE
    except OSError as error:
        # A path that was given and that no message of ours foresaw: too long, a link to itself, without permission.
        if debug or error.filename is None:
            raise
        code = _complain(prefix, f"{error.filename}: {error.strerror}")
    try:
        return code if flush_output() else BROKEN_PIPE
    except OSError as error:
        _discard(sys.stdout)
        return _complain(prefix, f"the standard output cannot be written ({error.strerror})")


def run_parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, run: Callable[..., int | None]) -> int:
    """Parse a command line and run a command with its options as keyword arguments, see :func:`run_command`.

    Args:
        parser: parser of the options; it gets ``--debug`` here.
        arguments: words of the command line; None for those of this process.
        run: the command.
    """
    add_debug_flag(parser)
    options = vars(parser.parse_args(arguments))
    debug = options.pop("debug")
    return run_command(lambda: run(**options), debug=debug)


@contextmanager
def _plain_warnings(name: str | None, debug: bool) -> Iterator[None]:
    """Print warnings on one line each, without the source line, and the same warning only once.

    Warnings about future changes in libraries are hidden unless ``debug`` is set, since users can do nothing about
    them.
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
                # The filter is appended, so that -W and PYTHONWARNINGS take precedence.
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
    """Flush the standard streams; return False if the reader of one has closed its pipe.

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
    """Return whether a standard stream is a pipe or socket whose other end is closed."""
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
    """Redirect the rest of a stream to nowhere, because Python flushes it again at exit and would report an error."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def hides_bar(progress: bool) -> bool | None:
    """Return tqdm's ``disable``: None if a bar is wanted, which shows it on terminals but not in files."""
    return None if progress else True


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``, which every command has."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the known one that was probably meant, or nothing."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class CommandParser(argparse.ArgumentParser):
    """A parser that reports errors on one line, and suggests the flag that was probably meant.

    Subcommands use the same class, so that an unknown flag is reported by the subcommand that received it, rather than
    by the main command, which knows none of its flags.
    """

    _words: str | None = None

    def take_words_anywhere(self, dest: str) -> None:
        """Allow the words of a positional argument with ``nargs="*"`` before, between and after flags."""
        self._words = dest

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :meth:`argparse.ArgumentParser.parse_known_args`; here, unknown flags are an error and not returned."""
        args = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None and "-" in self.prefix_chars:
            # This comes first: otherwise a misspelt required flag would be reported as missing.
            self._check_spelling(args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if self._words is not None:
            # argparse fills positional arguments with the words before the first flag only, and returns the others.
            getattr(parsed, self._words).extend(word for word in unknown if word == "-" or not word.startswith("-"))
            unknown = [word for word in unknown if word.startswith("-") and word not in ("-", "--")]
        if unknown:
            file = next((word for word in unknown if word.startswith("-") and os.path.exists(word)), None)
            hint = f"; a file whose name begins with a dash is given as ./{file}" if file else ""
            self.error(f"unexpected arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def _check_spelling(self, args: Sequence[str]) -> None:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in args[: args.index("--")] if "--" in args else args:
            flag = word.partition("=")[0]
            if flag.startswith("--") and not any(name.startswith(flag) for name in known):
                self.error(f"there is no flag {flag}{suggestion(flag, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse lists the choices and leaves it to the user to find the one that was meant.
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            known = ", ".join(action.choices)
            self.error(f"there is no command {value!r}{suggestion(str(value), action.choices)} (there are {known})")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and a one-line message."""
        self.exit(USER_ERROR, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process. It is not an error if the reader of the help text has closed its pipe."""
        if message:
            self._print_message(message, sys.stderr)
        flush_output()
        sys.exit(status)
