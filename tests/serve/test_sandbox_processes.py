"""The processes of the sandbox: what breaks there stays there, and what they may do is little."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serve.helpers.media import film, picture, policy, write
from tests.serve.helpers.sandboxes import refusal, run
from tests.serve.helpers.servers import PATIENCE_S, wait_until
from videollama2.serve.untrusted_media import process as sandbox_process
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.process import Child, ChildLimits
from videollama2.serve.untrusted_media.sandbox import Sandbox

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells about processes and limits them")

# ------------------------------------------------------------------------------------------------- processes that break


def stop(box):
    """The process of a sandbox that has one, stopped so that its second job cannot end."""
    (child,) = box._children
    os.kill(child.process.pid, signal.SIGSTOP)
    return child


async def until(holds):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def job_has_begun(child, task):
    """Wait until the process has its second job. Killed before, it would only be replaced."""
    await until(lambda: child._limits.jobs - child._left == 2 or task.done())


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGXCPU])
def test_a_crash_ends_its_own_job_and_nothing_else(number):
    async def work(box):
        await box.read("image", picture(9, 9))
        child = stop(box)
        task = asyncio.ensure_future(box.read("image", picture(10, 10)))
        await job_has_begun(child, task)
        after = asyncio.ensure_future(box.read("image", picture(11, 11)))
        await until(lambda: len(box._flights) == 2)
        os.kill(child.process.pid, number)
        os.kill(child.process.pid, signal.SIGCONT)
        done = await asyncio.gather(task, after, return_exceptions=True)
        return done, box.started

    (broken, good), started = run(work)
    assert isinstance(broken, RefusedMediaError)
    assert broken.status == 400
    assert broken.code == ("media_timeout" if number == signal.SIGXCPU else "invalid_media")
    assert signal.Signals(number).name in broken.detail
    assert "SIG" not in str(broken)
    assert good.shape == (11, 11, 3)
    assert started == 2


@pytest.mark.slow
@LINUX
def test_a_job_that_hangs_is_ended():
    async def work(box):
        await box.read("image", picture(9, 9))
        stop(box)
        box.policy, usual = replace(box.policy, decode_timeout_s=0.2), box.policy
        with pytest.raises(RefusedMediaError) as caught:
            await box.read("image", picture(10, 10))
        box.policy = usual
        return caught.value, await box.read("image", picture(11, 11))

    error, after = run(work)
    assert error.code == "media_timeout"
    assert "took longer than the 0.2 s" in str(error)
    assert after.shape == (11, 11, 3)


@pytest.mark.slow
@LINUX
def test_whoever_leaves_takes_the_work_along():
    async def work(box):
        await box.read("image", picture(9, 9))
        child = stop(box)
        task = asyncio.ensure_future(box.read("image", picture(10, 10)))
        await job_has_begun(child, task)
        task.cancel()
        await asyncio.wait([task])
        after = await box.read("image", picture(11, 11))
        return child.process.poll(), after.shape, box.started

    assert run(work) == (-signal.SIGKILL, (11, 11, 3), 2)


@pytest.mark.slow
@LINUX
def test_one_of_several_who_leaves_does_not():
    async def work(box):
        await box.read("image", picture(9, 9))
        child = stop(box)
        data = picture(10, 10)
        first, second = (asyncio.ensure_future(box.read("image", data)) for _ in range(2))
        await job_has_begun(child, first)
        await until(lambda: sum(flight.waiting for flight in box._flights.values()) == 2)
        first.cancel()
        await asyncio.wait([first])
        os.kill(child.process.pid, signal.SIGCONT)
        return (await second).shape, box.started

    assert run(work) == ((10, 10, 3), 1)


@pytest.mark.slow
def test_many_who_ask_for_the_same_share_one_decoding():
    async def work(box):
        data = film()
        frames = await asyncio.gather(*(box.read("video", data, {"num_frames": 4}) for _ in range(20)))
        (child,) = box._children
        return frames, child._left

    frames, left = run(work, jobs_per_process=10)
    assert left == 9
    assert all(one is frames[0] for one in frames)


@pytest.mark.slow
def test_a_process_is_replaced_after_its_jobs():
    async def work(box):
        for number in range(5):
            await box.read("image", picture(5 + number, 5))
        return box.started

    assert run(work, jobs_per_process=2) == 3


def test_a_process_that_cannot_start_is_a_503(monkeypatch):
    monkeypatch.setattr(sandbox_process, "_PROGRAM", "raise SystemExit(3)")
    error = refusal("image", picture(), policy=policy())
    assert (error.status, error.code) == (503, "decoder_unavailable")
    assert "code 3" in error.detail


def test_a_process_that_lies_about_its_reply_is_not_believed(monkeypatch):
    """It may be in a client's hands: shapes that do not fit the bytes are refused."""
    lie = (
        "import sys; sys.path[:] = __import__('json').loads(sys.argv[1])\n"
        "from videollama2.serve.untrusted_media.wire import read_message, write_message\n"
        "i, o = sys.stdin.buffer, sys.stdout.buffer\n"
        "read_message(i, 0); write_message(o, {'ready': []})\n"
        "read_message(i, 1 << 30); write_message(o, {'shapes': [[1 << 40, 9, 3]]}, [b'abc'])\n"
    )
    monkeypatch.setattr(sandbox_process, "_PROGRAM", lie)
    assert str(refusal("image", picture(), policy=policy())) == "the image cannot be decoded"


@pytest.mark.slow
def test_closing_ends_the_processes():
    async def main():
        box = Sandbox(policy(decode_processes=2))
        await box.start()
        children = list(box._children)
        box.close()
        with pytest.raises(RefusedMediaError) as caught:
            await box.read("image", picture())
        return [child.process.poll() for child in children], caught.value.status

    codes, status = asyncio.run(main())
    assert len(codes) == 2
    assert all(code is not None for code in codes)
    assert status == 503


# --------------------------------------------------------------------------------------------------- what a process may


def in_child(code, memory=1 << 30):
    """Output of ``code`` in a process with the limits of a decoding one."""
    program = (
        "import os, sys\n"
        "from videollama2.serve.untrusted_media import child, limits\n"
        f"limits.die_with_parent(os.getppid())\n"
        f"in_force = limits.restrict({memory}, 60, child._installation())\n{code}"
    )
    root = Path(sandbox_process.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert "ImportError" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def ready():
    """A process that waits for its first job, started by a server that has a key in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEOLLAMA2_API_KEY", "sk-secret")
        child = Child(ChildLimits.of(policy(), 1))
    yield child
    child.end()


@LINUX
def test_limits_are_in_force(ready):
    assert {"AS", "CPU", "CORE", "NOFILE", "FSIZE", "NO_NEW_PRIVS"} <= set(ready.in_force)
    assert "NoNewPrivs:\t1" in Path(f"/proc/{ready.process.pid}/status").read_text()
    limits = Path(f"/proc/{ready.process.pid}/limits").read_text()
    rows = {line[:26].strip(): line[26:].split() for line in limits.splitlines()[1:]}
    assert rows["Max core file size"][1] == rows["Max file size"][1] == "0"
    assert rows["Max open files"][1] == "64"
    assert (1 << 30) < int(rows["Max address space"][1]) < (3 << 30)


@LINUX
def test_a_process_sees_nothing_of_the_servers_environment(ready):
    try:
        # Not dumpable: even its owner reads its environment only as root.
        assert b"sk-secret" not in Path(f"/proc/{ready.process.pid}/environ").read_bytes()
    except PermissionError:
        pytest.skip("only root reads the environment of such a process")


@pytest.mark.slow
@LINUX
def test_a_process_writes_no_file_and_takes_no_memory(tmp_path):
    target = tmp_path / "written"
    found = in_child(
        "try:\n    bytearray(2 << 30)\nexcept MemoryError:\n    print('no memory', flush=True)\n"
        f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nopen({str(target)!r}, 'wb').write(b'x')"
    )
    assert found.stdout.strip() == "no memory"
    assert found.returncode != 0
    assert not target.exists() or target.stat().st_size == 0


@pytest.mark.slow
@LINUX
def test_with_landlock_a_process_reads_no_file_of_others_and_connects_nowhere(tmp_path):
    secret = write(tmp_path / "key", b"sk-secret")
    code = (
        "print('LANDLOCK' in in_force)\n"
        f"for attempt in (lambda: open({str(secret)!r}).read(), lambda: open('/etc/passwd').read(),\n"
        "    lambda: __import__('socket').create_connection(('127.0.0.1', 9), 1)):\n"
        "    try:\n        attempt(); print('got through')\n"
        "    except PermissionError:\n        print('refused')\n"
        "    except OSError as error:\n        print(error)\n"
    )
    lines = in_child(code).stdout.split("\n")
    if lines[0] != "True":
        pytest.skip("this kernel has no Landlock")
    assert lines[1:3] == ["refused", "refused"]
    assert "got through" not in lines


@pytest.mark.slow
def test_a_process_imports_no_torch():
    code = (
        "import sys, videollama2.serve.untrusted_media.child\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers', 'fastapi', 'httpx')])"
    )
    root = Path(sandbox_process.__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.slow
@LINUX
def test_a_process_dies_with_the_server():
    code = (
        "import asyncio, os, sys\n"
        "from tests.serve.helpers.media import policy\n"
        "from videollama2.serve.untrusted_media.sandbox import Sandbox\n"
        "box = Sandbox(policy())\n"
        "asyncio.run(box.start())\n"
        "print(next(iter(box._children)).process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(sandbox_process.__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    pid = int(found.stdout)
    wait_until(lambda: not _alive(pid), what="the process ends")


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
