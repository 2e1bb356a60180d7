"""Shared fixtures. Reference values come from ``../shared/golden`` when it is there, else from the copy in tests/."""

import gc
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing local path must fail at once, not after retries
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.helpers.timing import ProcessorTimes

ROOT = Path(__file__).resolve().parent.parent
# What the helpers of a wing assert is explained as what its tests assert.
pytest.register_assert_rewrite(*(f"tests.{path.parent.name}.helpers" for path in (ROOT / "tests").glob("*/helpers*")))
GOLDEN_COPY = ROOT / "tests" / "golden"
_CANDIDATES = (ROOT.parent / "shared" / "golden", GOLDEN_COPY)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """Fails a test that leaves its thread real-time: whatever this process started later would inherit it."""
    yield
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pytest.fail("this test left its thread with real-time scheduling")


@pytest.fixture(autouse=True)
def ordinary_signals() -> Iterator[None]:
    """Fails a test that leaves a handler of a signal behind: a later one would not end where it should."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    left = [number for number, handler in before.items() if signal.getsignal(number) is not handler]
    for number in left:
        signal.signal(number, before[number])
    assert not left


def golden_dirs() -> list[Path]:
    """Every set of reference values that is here: the whole one where it is, and the copy, a part of it.

    A test that counts values takes both, or the numbers of one are only ever tried where the other is not.
    """
    found = [folder for folder in _CANDIDATES if (folder / "summary.json").is_file()]
    if not found:
        raise FileNotFoundError(f"no reference data in {' or '.join(map(str, _CANDIDATES))}")
    return found


def golden_dir() -> Path:
    """Folder of the reference values computed by the published code."""
    return golden_dirs()[0]


def golden_audio_dir() -> Path:
    """Folder of the reference values of the audio branch: the whole set where it is here, else the part in tests/."""
    whole = ROOT.parent / "shared" / "golden_audio"
    return whole if (whole / "summary.json").is_file() else ROOT / "tests" / "golden_audio"


def decoder_sizes(**sizes: int) -> dict[str, int]:
    """Sizes of a decoder of one layer, with others in their place where they are given."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {**small, "num_key_value_heads": 2, **sizes}


class FailuresAtOnce:
    """pytest plug-in: names each test as soon as it has failed, so that a suite that is cut short has told it."""

    def __init__(self, config: pytest.Config) -> None:
        self.terminal = config.pluginmanager.get_plugin("terminalreporter")

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.terminal is not None:  # workers of pytest-xdist have none
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.partition("\n")[0][:200] if crash else "see below"
            self.terminal.write_line("")
            self.terminal.write_line(f"FAILED {report.nodeid} ({report.when}): {reason}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessorTimes())
    config.pluginmanager.register(FailuresAtOnce(config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin each test, its fixtures included, with the same random numbers, whatever ran before in this process."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Modules and test items live to the end: no later collection needs to look at them again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """pytest collects five times in the end, to hear of what was left open; with torch loaded, each takes long."""
    gc.collect()
    gc.freeze()


def write_cut_video(source: str | Path, target: Path) -> None:
    """The first half of the bytes of a video, as Matroska: it can be read, with a warning that it is damaged."""
    import av

    whole = target.with_suffix(".whole.mkv")
    with av.open(str(source)) as reading, av.open(str(whole), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(reading.streams.video[0]):
            if packet.size:
                packet.stream = stream
                writing.mux(packet)
    content = whole.read_bytes()
    whole.unlink()
    target.write_bytes(content[: len(content) // 2])


_TOGETHER = (
    ("adhoc", "backend", "faults"),
    ("web_page", "web_page_faults", "page_sound", "page_server", "page_parts", "page_commands"),
    ("openai_sound", "sound_doors"),
)
"""Files of ``serve/`` that share what takes long to start: the processes of an installation; Gradio, a page and a
browser; a model that hears. One worker of pytest-xdist gets them all."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, but for the files that belong together."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    scopes = {f"tests/serve/test_{name}.py": f"tests/serve/test_{names[0]}.py" for names in _TOGETHER for name in names}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return scopes.get(file, file)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first: of several workers, none is left with a long one in the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(params=["Intel's", "another"])
def fast_mkl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Makes the kernels for CPUs those of a processor of Intel, or of another, and tells which."""
    from tests.helpers.kernels import pretend_processor

    is_fast = request.param == "Intel's"
    pretend_processor(monkeypatch, is_fast)
    return is_fast


@pytest.fixture(scope="session")
def golden() -> Path:
    return golden_dir()


@pytest.fixture(scope="session")
def golden_audio() -> Path:
    return golden_audio_dir()


@pytest.fixture(scope="session")
def python_of_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program that does what this interpreter does, without importing anything anew (forking_python.py)."""
    from tests.helpers.forking_python import forking_python

    with forking_python(tmp_path_factory.mktemp("forks")) as program:
        yield program
