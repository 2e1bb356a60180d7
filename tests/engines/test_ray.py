"""The application and batches on a Ray cluster of two nodes on this machine. Runs where Ray is:
``bash scripts/test_ray.sh``; with ``VLLM=...``, with vLLM in the replicas too."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

# For machines that are busy, where Ray gives a node and its agents only a few seconds to start: processes that are not
# needed are not started, and work is not done at the lowest priority. Read at import.
os.environ |= {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_niceness": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # which ends a cluster's processes when others fill the memory
    # Of vLLM: little memory, and no core of its own for each of a replica's processes.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
pytest.importorskip("ray", reason="Ray has an environment of its own (scripts/test_ray.sh)")

import psutil
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from tests.conftest import ROOT
from tests.engines.helpers.ray_load import (
    CLIENTS,
    HEADERS,
    KEY,
    MODEL,
    Load,
    body,
    check,
    some_more,
    under_load,
    wait_until,
)
from tests.helpers.ports import free_port
from tests.training.conftest import parts, world  # noqa: F401
from tests.training.helpers.runs import Run, difference, flags
from videollama2.cli import main
from videollama2.engines.ray import app

pytestmark = pytest.mark.ray

# Each node has room for one replica.
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_log_monitor": False}
REPLICA = f"ray::ServeReplica:default:{MODEL}"
CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"


@dataclass
class Machines:
    """A cluster of two nodes; clients talk to the first."""

    cluster: Cluster
    second: object
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module", autouse=True)
def without_dashboard() -> Iterator[None]:
    """Ray's agents without what only the dashboard needs: a node is dead if they take 15 s to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.utils.get_dashboard_dependency_error", lambda: ImportError("not wanted"))
        yield


@pytest.fixture(scope="module")
def machines(without_dashboard: None) -> Iterator[Machines]:
    os.environ["VIDEOLLAMA2_API_KEY"] = KEY
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "no_monitor": True})
    second = cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    port = free_port()
    # Proxies of both nodes would share the one port here, and a client whose own proxy is killed can only see it break.
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        yield Machines(cluster, second, port)
    finally:
        del os.environ["VIDEOLLAMA2_API_KEY"]
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def replicated(machines: Machines) -> Machines:
    """Two replicas, and a process of the API on each node."""
    deployed(min_replicas=2, fronts=2, log_prompts="false")
    return machines


def deployed(**flags: object) -> None:
    serve.run(app({"model_path": MODEL, "drain_timeout": 60, **flags}))


def without_application() -> None:
    """Give the room of the replicas to others."""
    if "default" in serve.status().applications:
        serve.delete("default")


def replicas(name: str = REPLICA) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def kill_second_node(machines: Machines) -> None:
    raylet = psutil.Process(machines.second.all_processes["raylet"][0].process.pid)
    for process in (raylet, *raylet.children(recursive=True)):
        process.send_signal(signal.SIGKILL)


def replace_second_node(machines: Machines) -> None:
    machines.cluster.remove_node(machines.second)
    machines.second = machines.cluster.add_node(**NODE)


def running() -> int:
    """Replicas that Serve counts as running."""
    states = serve.status().applications["default"].deployments[MODEL].replica_states
    return states.get("RUNNING", 0)


# --------------------------------------------------------------------------------------------------------- the tests


def test_serve_accepts_the_files_of_the_documentation() -> None:
    manifest = yaml.safe_load((ROOT / "docs" / "ray-service.yaml").read_text())
    (page,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(), re.DOTALL)
    for text in (manifest["spec"]["serveConfigV2"], page):
        (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
        assert application.import_path == "videollama2.engines.ray:app"
        assert isinstance(app(application.args), Application)


def test_the_api(replicated: Machines) -> None:
    with httpx.Client(base_url=replicated.url, headers=HEADERS, timeout=60, trust_env=False) as client:
        assert client.get("/ready", headers={"authorization": ""}).json() == {"status": "ready"}
        (model,) = client.get("/v1/models").json()["data"]
        assert model["id"] == MODEL and model["max_model_len"] > 0
        reply = client.post("/v1/chat/completions", json=body("Hello?", max_tokens=4), headers={"x-request-id": "one"})
        assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 4
        assert reply.headers.get_list("x-request-id") == ["one"]
        wrong = {
            401: client.post("/v1/chat/completions", json=body("x"), headers={"authorization": "Bearer no"}),
            404: client.post("/v1/chat/completions", json={**body("x"), "model": "none"}),
            400: client.post("/v1/chat/completions", json=body("x", temperature=-1)),
        }
        for status, refused in wrong.items():
            assert refused.status_code == status and refused.json()["error"]["message"]
        part = {"type": "video_url", "video_url": {"url": "http://127.0.0.1/clip.mp4"}}
        refused = client.post("/v1/chat/completions", json=body([part]))
        assert refused.status_code == 400 and "video_url" in refused.json()["error"]["param"]
        assert client.post("/get_worker_address", json={"model": MODEL}).json() == {"address": replicated.url}
        assert "video" in client.post("/worker_get_status").json()["kinds"]


def test_requests_about_one_clip_find_it_cached(replicated: Machines) -> None:
    """Each process decodes a clip once; of 16 questions, one replica gets all."""
    import base64

    url = f"data:video/mp4;base64,{base64.b64encode(CLIP.read_bytes()).decode()}"
    clip = {"type": "video_url", "video_url": {"url": url}}
    with httpx.Client(base_url=replicated.url, headers=HEADERS, timeout=60, trust_env=False) as client:
        before = counted(client, "videollama2:media_total")
        for number in range(16):
            question = {"type": "text", "text": f"Which colour does the square change to? {number}"}
            assert client.post("/v1/chat/completions", json=body([clip, question])).status_code == 200
        after = counted(client, "videollama2:media_total")
        took = {name: after[name] - before.get(name, 0) for name in after}
        assert sorted(took.values())[-1] == 16 and sum(took.values()) == 16, took
        assert sum(counted(client, "videollama2:http_requests_total").values()) > 16
        assert len(counted(client, "videollama2:num_requests_running")) == 2, "both replicas"


def streamed(client: httpx.Client, asked: dict) -> str:
    """The text of an answer that arrives token by token."""
    with client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


def counted(client: httpx.Client, name: str) -> dict[str, float]:
    """The metric by replica."""
    found: Counter = Counter()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["replica"]] += sample.value
    return found


def test_a_replica_and_a_node_are_killed(replicated: Machines) -> None:
    def kill_a_replica(load: Load) -> dict[str, float]:
        some_more(load, CLIENTS)
        replicas()[0].send_signal(signal.SIGKILL)
        gone = wait_until(lambda: running() < 2, 180, "Serve notices")
        back = wait_until(lambda: running() == 2, 300, "another replica")
        some_more(load, CLIENTS)
        return {"noticed after": gone, "another replica after": gone + back}

    def kill_the_second_node(load: Load) -> dict[str, float]:
        some_more(load, CLIENTS)
        kill_second_node(replicated)
        gone = wait_until(lambda: running() < 2, 180, "Serve notices")
        some_more(load, CLIENTS)
        return {"noticed after": gone}

    print("\na replica is killed:", end="")
    check(under_load(replicated.url, kill_a_replica))
    print("\na node is killed:", end="")
    check(under_load(replicated.url, kill_the_second_node))
    print("\nanother node joins:", end="")
    replace_second_node(replicated)
    print(f" a replica runs there after {wait_until(lambda: running() == 2, 300, 'a replica there'):.1f} s")


def test_replicas_come_and_go_with_the_load(machines: Machines) -> None:
    """Scaling down drains: streams that run meanwhile are complete."""
    deployed(min_replicas=1, max_replicas=2, target_requests=2, scale_up_after=1, scale_down_after=1)
    wait_until(lambda: running() == 1, 120, "one replica")
    quiet = Load(machines.url, 400)

    def grow(load: Load) -> dict[str, float]:
        return {"second replica after": wait_until(lambda: running() == 2, 300, "two replicas")}

    def shrink(load: Load) -> dict[str, float]:
        return {"back to one after": wait_until(lambda: len(replicas()) == 1, 300, "one replica")}

    print("\nthe load grows:", end="")
    busy = under_load(machines.url, grow)
    print("\nthe load shrinks:", end="")
    quiet = under_load(machines.url, shrink, tokens=400, clients=1)
    for load in (busy, quiet):
        assert set(load.ends) == {"complete"}, (load.ends, load.strange)


@pytest.mark.slow
def test_the_command(machines: Machines) -> None:
    """``videollama2 serve --engine ray`` joins the cluster, and leaves it at SIGTERM."""
    without_application()
    command = [sys.executable, "-m", "videollama2", "serve", "--engine", "ray", "--model-path", MODEL, "--no-page"]
    environment = {**os.environ, "RAY_ADDRESS": machines.cluster.address}
    command += ["--api-port", str(machines.port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert "API" in process.stdout.readline()
        with httpx.Client(base_url=machines.url, headers=HEADERS, timeout=60, trust_env=False) as client:
            assert client.post("/v1/chat/completions", json=body("Hello?")).status_code == 200
        process.terminate()
        assert process.wait(120) == 0
        assert "videollama2" not in serve.status().applications
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()


# ----------------------------------------------------------------------------------------------------------- batches

BATCH_REPLICA = "ray::MapWorker(MapBatches(Replica))"


def requests_file(folder: Path, count: int) -> Path:
    """Questions, of which each tenth is about a clip, and one about a clip that is not there."""
    lines = []
    for number in range(count):
        content = [{"type": "text", "text": f"What is {number}?"}]
        if number % 10 == 0:
            path = str(CLIP) if number else "nowhere.mp4"
            content.insert(0, {"type": "video_url", "video_url": {"url": path}})
        asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        lines.append(json.dumps({"custom_id": f"r{number}", "body": asked}))
    path = folder / "in.jsonl"
    path.write_text("\n".join(lines))
    return path


def told_by(path: Path) -> list[tuple[str, int, str]]:
    """Name, status and text (or error) of each reply of a batch."""
    found = []
    for line in map(json.loads, path.read_text().splitlines()):
        reply = line["response"]["body"]
        said = line["error"]["message"] if line["error"] else reply["choices"][0]["message"]["content"]
        found.append((line["custom_id"], line["response"]["status_code"], said))
    return found


def answers_of(target: Path) -> list[str]:
    """Names of the requests whose answers are on the disk."""
    (file,) = [*target.with_name(f"{target.name}.work").glob("answers/*.jsonl")] or [None]
    return [] if file is None else [json.loads(line)["id"] for line in file.read_text().split("\n")[:-1]]


def wait_for_answers(target: Path, count: int) -> None:
    wait_until(lambda: len(answers_of(target)) >= count, 300, f"{count} answers")


@pytest.mark.slow
def test_a_batch_whose_driver_replica_and_node_are_killed(machines: Machines, tmp_path: Path) -> None:
    """Equal to the own engine's in this process; a request whose answer is on the disk is not asked again."""
    without_application()
    count = 400
    source, whole, target = requests_file(tmp_path, count), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main(["batch", str(source), str(whole), "--model-path", MODEL]) == 1
    command = [sys.executable, "-m", "videollama2", "batch", str(source), str(target), "--model-path", MODEL]
    command += ["--engine", "ray", "--max-batch", "2"]
    environment = {**os.environ, "RAY_ADDRESS": machines.cluster.address}

    begun = subprocess.Popen(command, env=environment)
    wait_for_answers(target, 40)
    begun.kill()
    begun.wait()
    before = answers_of(target)
    wait_until(lambda: not replicas(BATCH_REPLICA), 120, "the replicas end with their driver")

    start = time.monotonic()
    begun = subprocess.Popen(command, env=environment)
    wait_until(lambda: len(replicas(BATCH_REPLICA)) == 2, 120, "a replica on each node")
    wait_for_answers(target, len(before) + 40)
    replicas(BATCH_REPLICA)[0].kill()
    wait_for_answers(target, len(before) + 100)
    kill_second_node(machines)
    assert begun.wait(300) == 1
    left = count - len(before)
    print(f"\nbatch: {len(before)} answers, the driver killed; {left} in {time.monotonic() - start:.1f} s")
    assert told_by(target) == told_by(whole)
    assert sorted(answers_of(target)) == sorted(set(answers_of(target))) and answers_of(target)[: len(before)] == before
    replace_second_node(machines)


@pytest.mark.slow
def test_a_request_with_which_every_replica_dies(machines: Machines, tmp_path: Path) -> None:
    """It becomes a line with an error; the others have their answers."""
    without_application()
    source, target = requests_file(tmp_path, 12), tmp_path / "out.jsonl"
    asked = [json.loads(line) for line in source.read_text().splitlines()]
    asked[5]["body"] |= {"max_tokens": 3000, "min_tokens": 3000}
    source.write_text("".join(json.dumps(line) + "\n" for line in asked))
    command = [sys.executable, "-m", "videollama2", "batch", str(source), str(target), "--model-path", MODEL]
    environment = {**os.environ, "RAY_ADDRESS": machines.cluster.address}
    begun = subprocess.Popen([*command, "--engine", "ray"], env=environment)
    wait_for_answers(target, 11)
    deaths = 0
    while begun.poll() is None:
        for replica in replicas(BATCH_REPLICA):
            if replica.cmdline()[:1] == [f"{BATCH_REPLICA}.__init__"]:
                continue  # it has no request yet
            replica.kill()
            replica.wait(60)
            deaths += 1
        time.sleep(0.2)
    assert begun.returncode == 1 and deaths >= 2
    lines = {line["custom_id"]: line for line in map(json.loads, target.read_text().splitlines())}
    assert list(lines) == [line["custom_id"] for line in asked]
    assert lines["r5"]["response"]["status_code"] == 502 and lines["r5"]["error"]["code"] == "worker_failed"
    assert [name for name, line in lines.items() if line["error"]] == ["r0", "r5"]


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.slow
def test_a_training_whose_process_is_killed(
    machines: Machines,
    world: Path,  # noqa: F811
    parts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A process on each node; one is killed, all begin again from the last checkpoint, and end as torchrun's do."""
    without_application()
    options = {"max_steps": 12, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}
    whole, target = tmp_path / "whole", tmp_path / "placed"
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    argv = ["-m", "videollama2.train", *flags(world, parts, whole, **options)]
    subprocess.run([*launched, *argv], check=True)

    command = [sys.executable, "-m", "videollama2.engines.ray_train", "--workers", "2", "--max-restarts", "1"]
    environment = {**os.environ, "RAY_ADDRESS": machines.cluster.address}
    begun = subprocess.Popen([*command, *flags(world, parts, target, **options)], env=environment)
    try:
        wait_until(lambda: any(target.glob("checkpoint-*/trainer_state.json")), 300, "a checkpoint")
        trained = [process for process in psutil.process_iter(["cmdline"]) if is_training(process, target)]
        assert len(trained) == 2
        trained[1].kill()
        assert begun.wait(300) == 0
    finally:
        begun.kill()
    assert difference(Run(whole).weights, Run(target).weights) <= 1e-6


def is_training(process: psutil.Process, folder: Path) -> bool:
    words = process.info["cmdline"] or []
    return "-c" in words and "--output_dir" in words and str(folder) in words


# -------------------------------------------------------------------------------------------------------------- vLLM


@pytest.mark.slow
def test_vllm_in_the_replicas(machines: Machines) -> None:
    """The answers of the own engine, from a replica of two processes, and after its death from another one."""
    pytest.importorskip("vllm", reason="vLLM is not installed (VLLM=... bash scripts/test_ray.sh)")
    import base64

    from videollama2 import Engine, model_init

    clip = {
        "type": "video_url",
        "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(CLIP.read_bytes()).decode()}"},
    }
    questions = ["What happens?", "Which colour does the square change to?"]
    model, processor, _ = model_init(MODEL, device="cpu")
    with Engine(model, processor) as engine:
        said = [
            engine.submit(
                [{"role": "user", "content": [{"type": "video", "path": str(CLIP)}, {"type": "text", "text": q}]}],
                max_new_tokens=16,
            )
            .result()
            .text
            for q in questions
        ]
    without_application()
    options = {"enforce_eager": "true"}
    flags = {
        "engine": "vllm",
        "tensor_parallel_size": 2,
        "dtype": "float32",
        "max_length": 512,
        "engine_option": options,
    }
    start = time.monotonic()
    deployed(min_replicas=1, **flags)
    print(f"\nvLLM in a replica: ready after {time.monotonic() - start:.1f} s")
    asked = [body([clip, {"type": "text", "text": question}], max_tokens=16) for question in questions]
    with httpx.Client(base_url=machines.url, headers=HEADERS, timeout=600, trust_env=False) as client:

        def answers() -> list[str]:
            found = [client.post("/v1/chat/completions", json=each) for each in asked]
            return [reply.json()["choices"][0]["message"]["content"] for reply in found]

        assert answers() == said
        assert [streamed(client, each) for each in asked] == said
        (replica,) = replicas()
        parts = replica.children(recursive=True)
        assert sum("VLLM" in " ".join(part.cmdline()) for part in parts) >= 3, "an engine with two processes"
        long = body("Hello?", stream=True, max_tokens=400, min_tokens=400)
        with client.stream("POST", "/v1/chat/completions", json=long) as reply:
            lines = (json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {"))
            assert any(event["choices"][0]["delta"].get("content") for event in lines)
            replica.kill()
            *_, last = lines
        assert last["error"]["code"] == "worker_failed"
        start = time.monotonic()
        assert answers() == said
        print(f"killed; another one answers after {time.monotonic() - start:.1f} s")
        assert not psutil.wait_procs(parts, timeout=60)[1], "its processes end with it"
    without_application()
