"""Which worker takes a request, and which may register."""

import asyncio
from collections import Counter
from random import Random

import pytest

from videollama2.serve.cluster.admission import WorkerAddresses, worker_address
from videollama2.serve.cluster.affinity import SLACK, affinity_of_chat
from videollama2.serve.cluster.protocol import WorkerStatus
from videollama2.serve.cluster.registry import Registry
from videollama2.serve.settings import Security
from videollama2.serve.web.errors import ApiError


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def registry(method="shortest_queue", **workers):
    """Workers as name=(speed, queue)."""
    clock = Clock()
    found = Registry(method, 30, clock, Random(1))
    found.clock = clock
    for name, (speed, queue) in workers.items():
        found.register(name, WorkerStatus(model_names=["m"], speed=speed, queue_length=queue))
    return found


def drawn(found, count, model="m"):
    return Counter(found.choose(model).name for _ in range(count))


def code_of(found, model, exclude=()):
    with pytest.raises(ApiError) as raised:
        found.choose(model, exclude)
    return raised.value.status, raised.value.internal_code


def test_lottery_draws_in_proportion_to_speed():
    counts = drawn(registry("lottery", a=(1, 50), b=(3, 0)), 4000)
    assert 0.70 < counts["b"] / 4000 < 0.80 and counts["a"]


def test_shortest_queue_counts_in_relation_to_speed():
    found = registry(a=(1, 2), b=(10, 15))
    assert drawn(found, 1) == {"b": 1}  # 1.5 seconds of work, not 2
    counts = drawn(registry(a=(1, 0), b=(3, 0)), 400)
    assert 95 <= counts["a"] <= 105  # what was sent counts, so work spreads with speed


def test_what_is_over_leaves_the_queue():
    found = registry(a=(1, 0))
    worker = found.choose("m")
    assert worker.queue == 1
    found.finished(worker)
    found.finished(worker)
    assert worker.queue == 0


def test_silence_expires():
    found = registry(a=(1, 0), b=(1, 0))
    found.clock.now += 20
    assert found.beat("a", 7)
    found.clock.now += 11
    assert found.expire() == ["b"] and found.models() == ["m"]
    assert not found.beat("b", 0), "it has to register again"
    found.clock.now += 31
    assert found.models() == []


def test_a_worker_without_heart_beats_stays_as_long_as_it_answers():
    found, status = registry(), WorkerStatus(model_names=["m"])
    found.register("fixed", status, is_checked=False)
    for _ in range(100):
        found.clock.now += 20
        found.told(found.choose("m"), status)
    found.clock.now += 31
    assert found.models() == []


def test_a_heart_beat_sets_the_queue():
    found = registry(a=(1, 0), b=(1, 0))
    found.beat("a", 9)
    assert drawn(found, 5) == {"b": 5}


def test_suspects_are_passed_over_where_there_are_others():
    found = registry(a=(1, 0), b=(1, 5))
    first = found.choose("m")
    assert first.name == "a"
    found.failed(first)
    assert drawn(found, 5) == {"b": 5}
    assert found.choose("m", ["b"]).name == "a", "better than none"
    found.clock.now += 6
    assert found.choose("m").name == "a"


def test_a_registration_forgets_failures():
    found = registry(a=(1, 0), b=(1, 5))
    found.failed(found.choose("m"))
    found.register("a", WorkerStatus(model_names=["m"]))
    assert found.choose("m").name == "a"


def test_missing_models():
    found = registry()
    assert code_of(found, "m") == (503, 50005)
    found.register("a", WorkerStatus(model_names=["m", "n"]))
    assert code_of(found, "other") == (503, 50005), "just after a start others may still come"
    found.clock.now += 16
    found.beat("a", 0)
    assert code_of(found, "other") == (404, 40301)
    assert code_of(found, "m", ["a"]) == (503, 50005)
    found.register("a", WorkerStatus(model_names=["n"]))
    assert code_of(found, "m") == (503, 50005), "it was here and may come back"


def test_models_of_several_workers():
    found = registry(a=(1, 0))
    found.register("b", WorkerStatus(model_names=["z", "b"]), multimodal=False)
    assert found.models() == ["b", "m", "z"]
    assert found.models(multimodal=True) == ["m"] and found.models(multimodal=False) == ["b", "z"]
    assert found.remove("b") and not found.remove("b")
    assert found.models() == ["m"]


def test_the_table_of_workers_is_bounded(monkeypatch):
    monkeypatch.setattr("videollama2.serve.cluster.registry.MAX_WORKERS", 2)
    found = registry(a=(1, 0), b=(1, 0))
    found.register("a", WorkerStatus(model_names=["m"]))
    with pytest.raises(ApiError):
        found.register("c", WorkerStatus(model_names=["m"]))


# ------------------------------------------------------------------------------------------------------- registration

NAMES = {
    "gpu1": ["10.1.2.3"],
    "evil": ["169.254.169.254"],
    "both": ["127.0.0.1", "10.0.0.1"],
    "here": ["127.0.0.1"],
    "localhost": ["127.0.0.1"],
    "outside": ["93.184.216.34"],
}


async def resolve(host, port):
    found = NAMES.get(host) or ([host.strip("[]")] if host[0].isdigit() or ":" in host else [])
    if not found:
        raise OSError("unknown")
    return found


def admit(name, **options):
    return asyncio.run(WorkerAddresses(Security(**options), resolve).admit(worker_address(name)))


def caller(host, **options):
    try:
        asyncio.run(WorkerAddresses(Security(**options), resolve).check_caller(host))
    except ApiError as error:
        assert error.status == 403
        return False
    return True


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("http://127.0.0.1:4", {}, "http://127.0.0.1:4"),
        ("http://[::1]:4", {}, "http://[::1]:4"),
        ("http://[0::1]:4/", {}, "http://[::1]:4"),
        ("HTTP://LocalHost:80", {}, "http://localhost"),
        ("http://here:4", {}, "http://127.0.0.1:4"),
        ("http://10.1.2.3:4", {"worker_token": "t"}, "http://10.1.2.3:4"),
        ("http://gpu1:4", {"worker_token": "t"}, "http://gpu1:4"),
        ("http://gpu1:4", {"allowed_workers": ("10.0.0.0/8",)}, "http://10.1.2.3:4"),
        ("http://gpu1:4", {"allowed_workers": ("gpu1",)}, "http://gpu1:4"),
        ("http://169.254.1.1:4", {"allowed_workers": ("169.254.0.0/16",)}, "http://169.254.1.1:4"),
    ],
)
def test_addresses_that_workers_may_have(name, options, expected):
    """A name that a network allows is pinned to the address that was checked."""
    assert admit(name, **options) == expected


@pytest.mark.parametrize(
    ("name", "options", "status"),
    [
        ("http://10.1.2.3:4", {}, 403),
        ("http://outside:80", {}, 403),
        ("http://both:4", {}, 403),
        ("http://169.254.169.254", {}, 403),
        ("http://169.254.169.254", {"worker_token": "t"}, 403),
        ("http://evil:80", {"worker_token": "t"}, 403),
        ("http://[fe80::1]:4", {"worker_token": "t"}, 403),
        ("http://[fec0::1]:4", {"worker_token": "t"}, 403),
        ("http://[::127.0.0.1]:4", {"worker_token": "t"}, 403),
        ("http://[64:ff9b:1::1]:4", {"worker_token": "t"}, 403),
        ("http://240.0.0.1:4", {"worker_token": "t"}, 403),
        ("http://[::ffff:169.254.169.254]:4", {"worker_token": "t"}, 403),
        ("http://[64:ff9b::a9fe:a9fe]:4", {"worker_token": "t"}, 403),
        ("http://[2002:a9fe:a9fe::]:4", {"worker_token": "t"}, 403),
        ("http://0.0.0.0:4", {"worker_token": "t"}, 403),
        ("http://224.0.0.1:4", {"worker_token": "t"}, 403),
        ("http://[::ffff:10.0.0.1]:4", {}, 403),
        ("http://127.0.0.1:4", {"worker_token": "t", "allowed_workers": ("10.0.0.0/8",)}, 403),
        ("http://gpu2:4", {"allowed_workers": ("gpu1",)}, 400),
        ("http://127.0.0.1:4/admin", {}, 400),
        ("http://127.0.0.1:4?x", {}, 400),
        ("http://127.0.0.1:4#x", {}, 400),
        ("http://user@127.0.0.1:4", {}, 400),
        ("http://127.0.0.1:99999", {}, 400),
        ("http://127.0.0.1:0", {}, 400),
        ("http://127.0.0.1:4/#x", {}, 400),
        ("http://127.0.0.1:4#", {}, 400),
        ("http://127.0.0.1:4/?", {}, 400),
        ("http://2130706433:4", {}, 400),
        ("http://127.0.0.1\\@evil:4", {}, 400),
        ("http://127.0.0.1%2eevil:4", {}, 400),
        ("ftp://127.0.0.1:4", {}, 400),
        ("http://", {}, 400),
    ],
)
def test_addresses_that_workers_may_not_have(name, options, status):
    with pytest.raises(ApiError) as raised:
        admit(name, **options)
    assert raised.value.status == status


def test_callers():
    assert caller("127.0.0.1") and caller("::1") and caller("::ffff:127.0.0.1")
    assert not caller("10.0.0.1") and not caller(None) and not caller("nonsense")
    assert caller("10.0.0.1", worker_token="t")
    assert not caller("10.0.0.1", worker_token="t", allowed_workers=("192.168.0.0/16",))
    assert caller("10.1.2.3", allowed_workers=("gpu1",)) and not caller("10.1.2.4", allowed_workers=("gpu1",))


# ----------------------------------------------------------------------------------------------------------- affinity


def test_requests_about_one_thing_go_to_one_worker_until_it_is_too_busy():
    found = registry(a=(1, 0), b=(1, 0), c=(1, 0))
    first = found.choose("m", (), "clip").name
    assert all(found.choose("m", (), "clip").name == first for _ in range(SLACK))
    assert found.choose("m", (), "clip").name != first, "others have nothing to do"
    assert {registry(a=(1, 0), b=(1, 0)).choose("m", (), str(n)).name for n in range(32)} == {"a", "b"}


def test_affinity_outlives_other_workers_but_not_its_own():
    found = registry(a=(1, 0), b=(1, 0), c=(1, 0))
    first = found.choose("m", (), "clip").name
    other = next(worker.name for worker in found.workers if worker.name != first)
    found.remove(other)
    assert found.choose("m", (), "clip").name == first
    assert found.choose("m", (first,), "clip").name != first
    found.failed(next(worker for worker in found.workers if worker.name == first))
    assert found.choose("m", (), "clip").name != first


def test_what_a_conversation_is_about():
    def chat(url, *texts):
        media = {"type": "video_url", "video_url": {"url": url}}
        first = {"role": "user", "content": [media, {"type": "text", "text": texts[0]}]}
        rest = [{"role": role, "content": text} for text in texts[1:] for role in ("assistant", "user")]
        return affinity_of_chat({"messages": [{"role": "system", "content": "s"}, first, *rest]})

    assert chat("data:a", "what?") == chat("data:a", "where?", "why?") != chat("data:b", "what?")
    assert chat("x" * 200_000 + "a", "?") != chat("x" * 200_000 + "b", "?")
    plain = [affinity_of_chat({"messages": [{"role": "user", "content": text}]}) for text in ("a", "b", "a")]
    assert plain[0] == plain[2] != plain[1]
    parts = ({"image_url": "data:a"}, {"audio_url": {"url": "data:a"}}, {"input_audio": {"data": "data:a"}})
    later = [{"role": "user", "content": "see"}, {"role": "user", "content": [*parts[:1]]}]
    for body in (*({"messages": [{"role": "user", "content": [part]}]} for part in parts), {"input": later}):
        assert affinity_of_chat(body) == chat("data:a", "what?")
    assert affinity_of_chat({"input": "a"}) == plain[0]
    for strange in (
        {},
        {"messages": 3},
        {"messages": [None, {"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": [{"video_url": {"url": 5}}, 7]}]},
    ):
        assert affinity_of_chat(strange) is None


def test_a_heart_beat_may_correct_the_speed():
    found = registry(a=(1, 0))
    assert found.beat("a", 2, 8.0) and found.workers[0].speed == 8
    assert found.beat("a", 2) and found.workers[0].speed == 8
