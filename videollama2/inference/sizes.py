"""Checks the engine's sizes, and chooses the number and length of its slots by their bytes and the free memory."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from pathlib import Path

import torch

from videollama2.errors import ConfigError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

MAX_BATCH, MAX_LENGTH = 16, 4096
"""Default sizes, reduced if memory or the model does not allow them."""

_SHORTEST = 512
"""The shortest length chosen automatically for a slot: about as many positions as one clip with its question needs."""

_SHARE_OF_MEMORY = 0.5
"""The share of free memory that slots may take if their number is chosen automatically."""

_log = logging.getLogger(__name__)


def check_sizes(prefix_cache_bytes: object, **counts: int | None) -> None:
    """Raise ConfigError unless the counts, by their names, are None or at least 1, and the cache is not below 0."""
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} must be at least 1, got {value!r}")
    if isinstance(prefix_cache_bytes, int) and prefix_cache_bytes < 0:
        raise ConfigError(f"prefix_cache_bytes must be 0 or more, got {prefix_cache_bytes}")


def slot_bytes(model: VideoLlama2ForConditionalGeneration, length: int) -> int:
    """Return the bytes of key-values for one sequence of ``length`` positions, over all layers."""
    return model.config.text_config.num_hidden_layers * _layer_bytes(model, length)


def fitting_slots(model: VideoLlama2ForConditionalGeneration, length: int) -> int:
    """Return how many slots of ``length`` positions fit into half of the free memory, 1 to :data:`MAX_BATCH`."""
    return max(1, min(MAX_BATCH, int(_SHARE_OF_MEMORY * _positions_that_fit(model) // length)))


def fitting_length(model: VideoLlama2ForConditionalGeneration, slots: int = 1, longest: int = MAX_LENGTH) -> int:
    """Return the positions per slot: ``longest``, or as many as the model and half of the free memory allow."""
    longest = min(longest, model.config.text_config.max_position_embeddings)
    return min(longest, max(_SHORTEST, int(_SHARE_OF_MEMORY * _positions_that_fit(model) // slots)))


def choose_sizes(
    model: VideoLlama2ForConditionalGeneration, max_batch: int | None, max_length: int | None
) -> tuple[int, int]:
    """Return ``max_batch`` and ``max_length``; those that are None are chosen from the free memory.

    Raises:
        ConfigError: they do not fit into memory.
    """
    positions = model.config.text_config.max_position_embeddings
    if max_length is not None and max_length > positions:
        _log.warning("max_length %d is beyond the %d positions the model was trained for", max_length, positions)
    length = max_length or fitting_length(model, max_batch or 1)
    batch = max_batch or fitting_slots(model, length)
    room = _positions_that_fit(model)
    if batch * length > room:
        per_position = slot_bytes(model, 1)
        raise ConfigError(
            f"{batch} slot(s) (max_batch) of {length} positions (max_length) take "
            f"{batch * length * per_position >> 20} MiB of key-values, but only {int(room * per_position) >> 20} MiB "
            "are free"
        )
    return batch, length


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on ``device``, including unused memory that torch has cached."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        return int(min(int(lines["MemAvailable"].split()[0]) << 10, _free_in_container()))
    # If the system does not report free memory, assume that half of all memory is free.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes that the control group of this process may still allocate; infinity without a limit.

    Args:
        root: where the system shows the groups. Inside a container, its own group is shown there.
    """
    for limit_file, used_file, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = int((root / limit_file).read_text()), int((root / used_file).read_text())
            statistics = (root / used_file).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such group, or the limit is "max"
            continue
        # Pages of files that nobody uses are counted, but are given up first.
        counts = {name: int(count) for name, _, count in (line.partition(" ") for line in statistics)}
        return max(0, limit - used + counts.get(cached, 0))
    return math.inf


def _layer_bytes(model: VideoLlama2ForConditionalGeneration, length: int) -> int:
    config = model.config.text_config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * heads * width * model.dtype.itemsize * length


def _positions_that_fit(model: VideoLlama2ForConditionalGeneration) -> float:
    """Return the number of positions, over all slots, whose key-values would fill one of the devices.

    A layer's key-values are on that layer's device, so the device with the least free memory per layer is the limit.
    """
    layers = Counter(next(layer.parameters()).device for layer in model.model.language_model.layers)
    return min(free_memory(device) / (count * _layer_bytes(model, 1)) for device, count in layers.items())
