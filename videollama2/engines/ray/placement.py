"""Tells the share of a machine that a copy of a model may use where Ray has placed it."""

from __future__ import annotations

import argparse

from videollama2.engines.ray.core import ray
from videollama2.serve.worker.flags import EngineOption


def gpus_of(args: argparse.Namespace) -> float:
    """Return the number of GPUs that a replica reserves."""
    if args.gpus_per_replica is not None:
        return args.gpus_per_replica
    if args.device == "cpu" or not (ray.is_initialized() and ray.cluster_resources().get("GPU")):
        return 0.0
    return float(args.tensor_parallel_size or 1)


def room_for(args: argparse.Namespace) -> int:
    """Return how many replicas the machines of the cluster have room for if nothing else runs there; at least 1."""
    reserved = {"CPU": args.cpus_per_replica, "GPU": gpus_of(args)}
    wanted = {name: amount for name, amount in reserved.items() if amount}
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            found += min((int(node["Resources"].get(name, 0) // amount) for name, amount in wanted.items()), default=1)
    return max(1, found)


def placed(args: argparse.Namespace) -> argparse.Namespace:
    """Return the flags of this replica's engine, which may use what Ray reserved for the replica and nothing else."""
    if args.engine == "vllm":
        # The processes of one replica share the GPUs that Ray reserved for it on one machine.
        options = [EngineOption("distributed_executor_backend=mp"), *(args.engine_option or ())]
        return argparse.Namespace(**{**vars(args), "engine_option": options})
    has_gpu = ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return argparse.Namespace(**{**vars(args), "device": args.device or (None if has_gpu else "cpu")})
