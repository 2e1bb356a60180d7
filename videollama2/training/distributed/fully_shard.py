"""Cuts weights, gradients and optimizer state into a slice for each process: FSDP2 (``--fully_shard``).

Layers of the decoder and of the vision encoder are gathered one after the other when they run. The embeddings, the
connectors and the output layer are gathered for the whole step, since the loss reads the output layer's weight itself.
As under DeepSpeed, every micro-batch must run the same modules on all processes
(:func:`videollama2.training.distributed.sharding.encode_uniformly`).

accelerate knows FSDP on GPUs only, and would wrap the model itself. Therefore the model is sharded before the trainer
sees it, and :class:`videollama2.training.run.saving.SavingTrainer` treats it like one that transformers has sharded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from videollama2.model.encoders import vision_encoder
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags.run import TrainingArguments

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: VideoLlama2ForConditionalGeneration, args: TrainingArguments) -> None:
    """Cut the parameters of ``model`` into slices, one for each process of the run."""
    mesh = init_device_mesh(args.device.type, (args.world_size,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if args.bf16 else MixedPrecisionPolicy()
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    name = type(model).__name__
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # The model's class is one that FSDP has made, and transformers finds the published names of weights by its name.
    type(model).__name__ = name


def layers_of(model: VideoLlama2ForConditionalGeneration) -> list[nn.Module]:
    """Return the layers that are gathered one by one: those that run, since torch expects that of what is sharded."""
    parts: list[nn.Module] = [model.model.language_model]
    tower = model.model.vision_tower
    if tower is not None:
        parts += vision_encoder(tower.config.model_type).runs(tower, model.config.mm_vision_select_layer)
    return [layer for part in parts for layer in part.modules() if isinstance(layer, GradientCheckpointingLayer)]


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights by their names in memory, on the first process alone (a collective operation)."""
    return cast("dict[str, torch.Tensor]", get_model_state_dict(model, options=_WHOLE))


def load_whole_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Set all weights; every process is given all of them and keeps its slices."""
    set_model_state_dict(model, cast("dict[str, Any]", state), options=StateDictOptions(full_state_dict=True))


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, is_first: bool) -> None:
    """Write the whole state of the optimizer by names of weights; the first process writes (a collective operation)."""
    state = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    if is_first:
        torch.save(state, path)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Read what :func:`save_optimizer` has written; the number of processes may be another one."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def set_gradient_sync(model: nn.Module, wanted: bool) -> None:
    """Choose whether backward passes reduce gradients over processes, which only a step's last one has to."""
    cast("FSDPModule", model).set_requires_gradient_sync(wanted)


def whole_tensor(tensor: Any) -> Any:
    """Return the value of a tensor that processes have slices or parts of; any other value as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
