"""A worker's registration with its controller: heartbeats, lost ones, speed, and signing off."""

import asyncio
import threading

import pytest

from tests.helpers.ports import free_port
from tests.serve.helpers.controllers import ControllerThread
from tests.serve.helpers.servers import PATIENCE_S, wait_until
from videollama2.serve.cluster.protocol import WorkerStatus
from videollama2.serve.settings import Security
from videollama2.serve.worker import registration
from videollama2.serve.worker.registration import Registration


class Beating:
    """A heart-beat in an event loop of its own."""

    def __init__(self, controller, worker="http://127.0.0.1:1234", **options):
        self.queue, self.speed = 0, 5
        self.beat = Registration(controller, worker, self.status, interval_s=0.05, **options)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.loop.call_soon_threadsafe(self.beat.start)

    def status(self):
        return WorkerStatus(model_names=["m"], speed=self.speed, queue_length=self.queue)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        asyncio.run_coroutine_threadsafe(self.beat.stop(), self.loop).result(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Reports and attempts are repeated so soon that a test need not wait for them."""
    monkeypatch.setattr(registration, "REPORT_S", 0.05)
    monkeypatch.setattr(registration, "RETRY_S", 0.05)


def test_a_worker_registers_reports_and_leaves(controller):
    with Beating(controller.url) as beating:
        worker = wait_until(lambda: next(iter(controller.registry.workers), None))
        assert (worker.name, worker.models, worker.speed) == ("http://127.0.0.1:1234", ("m",), 5)
        beating.queue = 3
        wait_until(lambda: controller.registry.workers[0].queue == 3)
        seen = controller.registry.workers[0].seen
        wait_until(lambda: controller.registry.workers[0].seen > seen)
    assert controller.registry.workers == []


def test_a_worker_that_is_forgotten_registers_again(controller):
    with Beating(controller.url):
        wait_until(lambda: controller.registry.workers)
        controller.registry.remove("http://127.0.0.1:1234")
        wait_until(lambda: controller.registry.workers)


def test_the_absence_of_a_controller_is_outlived():
    port = free_port()
    with Beating(f"http://127.0.0.1:{port}") as beating:
        wait_until(lambda: not beating.beat._was_reached)
        assert not beating.beat.is_registered


def test_a_wrong_token_is_no_registration():
    with ControllerThread(Security(worker_token="token")) as server:
        with Beating(server.url, credential="wrong") as beating:
            wait_until(lambda: not beating.beat._was_reached)
            assert not beating.beat.is_registered and not server.registry.workers
        with Beating(server.url, credential="token"):
            wait_until(lambda: server.registry.workers)


def test_the_controller_hears_of_a_better_speed(controller):
    with Beating(controller.url) as beating:
        wait_until(lambda: controller.registry.workers and controller.registry.workers[0].speed == 5)
        beating.speed = 9
        wait_until(lambda: controller.registry.workers[0].speed == 9)


def test_work_that_is_over_is_reported_though_the_queue_is_as_before(controller):
    """The controller has counted it, and would take the worker for busy until the next beat."""
    taken = [0]
    with Beating(controller.url, taken=lambda: taken[0]) as beating:
        worker = wait_until(lambda: next(iter(controller.registry.workers), None))
        beating.beat.interval_s = 60.0
        beating.queue = 1
        wait_until(lambda: worker.queue == 1)
        beating.queue = 0
        wait_until(lambda: worker.queue == 0)
        controller.registry.choose("m")
        assert worker.queue == 1
        taken[0] = 1
        wait_until(lambda: worker.queue == 0)


def test_a_lost_heart_beat_is_soon_repeated(controller):
    with Beating(controller.url) as beating:
        wait_until(lambda: controller.registry.workers)
        beating.beat.controller, there = f"http://127.0.0.1:{free_port()}", beating.beat.controller
        beating.beat.interval_s, beating.queue = 60.0, 1
        wait_until(lambda: not beating.beat._was_heard)
        seen, beating.beat.controller = controller.registry.workers[0].seen, there
        wait_until(lambda: controller.registry.workers[0].seen > seen)
