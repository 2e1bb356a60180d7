"""The engine's thread has the only pool of OpenMP threads. (In processes of their own: tests compute on one thread.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from videollama2.inference.openmp import has_libgomp

from .helpers import IMAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads"),
    pytest.mark.skipif(not has_libgomp(), reason="this build of torch does not compute with libgomp"),
]

COUNTING = """
import os, threading, time, torch
from videollama2.inference.openmp import compute_alone, release_pool

def threads():
    return len(os.listdir("/proc/self/task"))

def becomes(number):
    "Threads that have ended are listed for a moment longer."
    deadline = time.monotonic() + 10
    while threads() != number and time.monotonic() < deadline:
        time.sleep(0.01)
    return threads() == number

def compute():
    return torch.ones(1 << 20).sum()

def on_a_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]

compute()
time.sleep(0.2)
with_one = threads()
release_pool()
assert becomes(with_one - 1)
alone = threads()
"""


def run(script):
    told = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", COUNTING + script], env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_pool_ends_and_is_made_anew():
    run("""
for _ in range(2):
    assert compute() == 1 << 20 and becomes(alone + 1), "this thread and one of its pool"
    release_pool()
    assert becomes(alone)
release_pool()
assert torch.get_num_threads() == 2
""")


def test_a_thread_that_computes_alone_has_no_pool_and_changes_no_other():
    run("""
def added(work):
    assert becomes(alone)
    return on_a_thread(work) - alone

def with_pool():
    compute()
    return threads()

def without():
    compute_alone()
    return with_pool()

assert added(with_pool) == 2
assert added(without) == 1
assert added(with_pool) == 2, "those that are started later compute as ever"
assert becomes(alone)
torch.set_num_threads(2)  # which also starts a thread for other libraries
time.sleep(0.2)
alone = threads()
assert added(without) == 1, "as when somebody has chosen the number of threads"
assert becomes(alone) and with_pool() == alone + 1
""")


@pytest.mark.parametrize("quantised", [False, True])
def test_an_engine_computes_with_one_pool(quantised):
    run(f"""
from videollama2 import Engine, model_init
model, processor, _ = model_init("videollama2-tiny", device="cpu", load_8bit={quantised})
release_pool()
time.sleep(0.2)
alone = threads()
compute()
with Engine(model, processor, max_batch=2, max_length=600, media_threads=1) as engine:
    assert becomes(alone), "the pool in which the model was loaded"
    for question in ("What is red?", "What is blue?"):
        compute()  # as a caller who prepares the frames of a clip
        answer = engine.submit(question, [("image", {str(IMAGE)!r})], max_new_tokens=4)
        assert answer.result(timeout=60).error is None
    assert becomes(alone + 3), f"the engine's thread, one of its pool, and the one that reads: {{threads() - alone}}"
    counts = []
    step = engine.decoder.decode
    engine.decoder.decode = lambda tasks: counts.append(torch.get_num_threads()) or step(tasks)
    engine.submit("What is red?", max_new_tokens=4).result(timeout=60)
    assert set(counts) == {{2}}, "the engine computes on all threads"

from videollama2.inference.media.read_ahead import ReadAhead
torch.set_num_threads(2)
ahead = ReadAhead(lambda part, key: torch.get_num_threads(), 1, lambda: None)
assert ahead.ask("key", None).result() == 1, "those that read compute alone"
ahead.close()
""")
