"""How every command ends: one line and exit code 2, Ctrl-C, readers that leave, and flags that are misspelt."""

import io
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from tests.conftest import ROOT
from videollama2.cli import main
from videollama2.commands import CommandParser, hides_bar, run_command
from videollama2.errors import ConfigError

MAINS = [
    "videollama2",
    "videollama2.eval",
    "videollama2.serve.controller",
    "videollama2.serve.model_worker",
    "videollama2.serve.openai_api",
    "videollama2.serve.cli",
    "videollama2.serve.gradio_web_server",
    "videollama2.shapes.sets",
    "videollama2.shapes.captions",
]


def fail(error):
    def run():
        raise error

    return run


def test_exit_codes_of_what_ends_well():
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 1) == 1


def test_a_command_ends_without_a_search_for_garbage():
    code = (
        "import atexit, sys\n"
        "from videollama2.commands import run_command\n"
        "class Cycle:\n"
        "    def __init__(self): self.own = self\n"
        "    def __del__(self): print('searched')\n"
        "atexit.register(print, 'handled')\n"
        "sys.exit(run_command(lambda: Cycle() and 3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (3, "handled\n")


def test_an_error_is_one_line(capsys):
    assert run_command(fail(ConfigError("two\nlines\r\nand a third")), "part") == 2
    assert capsys.readouterr().err == "part: error: two lines and a third\n"
    assert run_command(fail(ConfigError("Caught: words")), describe=lambda error: str(error).partition(": ")[2]) == 2
    assert capsys.readouterr().err == "error: words\n"


def test_debug_and_faults_of_ours_come_with_their_traceback():
    with pytest.raises(ConfigError):
        run_command(fail(ConfigError("known")), debug=True)
    with pytest.raises(ZeroDivisionError):
        run_command(fail(ZeroDivisionError()))


def test_other_errors_are_told_where_a_command_says_so(capsys):
    assert run_command(fail(LookupError("strange")), "part", errors=(LookupError,)) == 2
    assert capsys.readouterr().err == "part: error: strange\n"


def test_ctrl_c_is_no_error(capsys):
    assert run_command(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


def test_a_pipe_of_ours_that_breaks_is_a_fault():
    """Only where the reader of the output has gone is there nothing to tell."""
    with pytest.raises(BrokenPipeError):
        run_command(fail(BrokenPipeError()))


PRINT = """
import sys
from videollama2.commands import run_command
def run():
    for number in range({lines}):
        print(number)
sys.exit(run_command(run, "part"))
"""


def run_unread(arguments, both=False):
    """Run Python with an output whose reader has gone already; returns exit code and errors."""
    reading, writing = os.pipe()
    os.close(reading)
    errors = writing if both else subprocess.PIPE
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=writing, stderr=errors, text=True)
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("lines", [10, 100_000], ids=["less than a buffer", "more than a buffer"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_command_quietly(monkeypatch, lines, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    assert run_unread(["-c", PRINT.format(lines=lines)]) == (141, "")
    assert run_unread(["-c", PRINT.format(lines=lines)], both=True)[0] == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\xfc \\udcff"), ("utf-8", "ü \\udcff")])
def test_characters_that_the_output_cannot_take_are_escaped(monkeypatch, encoding, shown):
    """A file's name may have bytes of another encoding, and the terminal's encoding few characters."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert run_command(lambda: print("ü \udcff")) == 0
    assert written.getvalue().decode(encoding) == f"{shown}\n"


def test_a_full_disk_is_told(monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINT.format(lines=1)], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "part: error: the standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("words", [["plan", "--model"], ["data", "check"], ["eval", "check", "mvbench", "--data"]])
def test_a_path_that_no_message_foresaw_is_named_on_one_line(words, capsys):
    too_long = "a" * 300
    assert main([*words, too_long]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: " in line and too_long in line and line.endswith("File name too long")
    with pytest.raises(OSError, match="File name too long"):
        main([*words, too_long, "--debug"])


def parser():
    parser = CommandParser(prog="program")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    ask = commands.add_parser("ask")
    ask.add_argument("question")
    ask.add_argument("--num-frames", type=int)
    return parser


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["ask", "What?", "--num-frame5", "3"],
            "program ask: error: there is no flag --num-frame5; did you mean --num-frames? (see program ask --help)\n",
        ),
        (["ask", "What?", "--colour=red"], "program ask: error: there is no flag --colour (see program ask --help)\n"),
        (
            ["aks", "What?"],
            "program: error: there is no command 'aks'; did you mean ask? (there are ask) (see program --help)\n",
        ),
        (["bogus"], "program: error: there is no command 'bogus' (there are ask) (see program --help)\n"),
        (["ask", "What?", "Why?"], "program ask: error: unexpected arguments: Why? (see program ask --help)\n"),
        (["ask"], "program ask: error: the following arguments are required: question (see program ask --help)\n"),
    ],
)
def test_what_is_wrong_on_a_command_line_is_told_by_the_subcommand_in_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == line


def test_a_file_whose_name_begins_with_a_dash(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-clip.mp4").touch()
    with pytest.raises(SystemExit):
        parser().parse_args(["ask", "-clip.mp4", "What?"])
    assert "a file whose name begins with a dash is given as ./-clip.mp4" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("module", MAINS)
def test_help_of_every_command_on_a_pipe_that_nobody_reads(module):
    assert run_unread(["-m", module, "--help"]) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("module", MAINS)
def test_every_command_names_the_flag_that_was_meant(module):
    sub = {"videollama2": ["chat"], "videollama2.eval": ["run", "mvbench"]}.get(module, [])
    done = subprocess.run([sys.executable, "-m", module, *sub, "--debugg"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "there is no flag --debugg; did you mean --debug?" in done.stderr


WARN = """
import sys, warnings
from videollama2.commands import run_command
def run():
    for number in (1, 2):
        warnings.warn("the file\\nis cut", UserWarning, stacklevel=number)
    warnings.warn("a name will change", FutureWarning, stacklevel=1)
sys.exit(run_command(run, "part", debug={debug}))
"""


@pytest.mark.parametrize("debug", [False, True])
def test_warnings_are_plain_and_said_once(debug):
    """In a process of its own, as pytest takes warnings for itself."""
    done = subprocess.run([sys.executable, "-c", WARN.format(debug=debug)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    expected = ["part: warning: the file is cut"] + ["part: warning: a name will change"] * debug
    assert done.stderr.splitlines() == expected


@pytest.mark.parametrize(("progress", "is_terminal", "is_shown"), [(1, 1, True), (1, 0, False), (0, 1, False)])
def test_bars_are_for_terminals(monkeypatch, progress, is_terminal, is_shown):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: bool(is_terminal), raising=False)
    list(tqdm(range(3), file=stream, disable=hides_bar(bool(progress))))
    assert ("3/3" in stream.getvalue()) is is_shown
