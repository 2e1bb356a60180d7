"""Decode steps of a few rows against their floor: the bytes that they read, and the products that they compute."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from limits import few_rows_rate, timed

ROWS = (1, 2, 4, 8, 16)
"""Numbers of rows of which a decode step is timed."""

POSITIONS = 870
"""Positions that each row of such a step attends to: a clip of 8 frames and a question."""


def step_floor(model: Any, decoder: Any, rows: int, weights: int, rate: float) -> tuple[float, float]:
    """Seconds in which the bytes of a step are read, and in which its products are computed.

    Args:
        weights: bytes of the decoder's layers and the head.
        rate: bytes per second.
    """
    import torch

    config, head = model.config.text_config, model.lm_head.weight
    layers = sum(p.numel() for p in model.get_decoder().layers.parameters())
    attention = 2 * config.num_hidden_layers * config.hidden_size * POSITIONS
    operations = 2 * rows * (layers + head.numel() + attention)
    read = (weights + rows * POSITIONS * decoder.slots.bytes_per_position) / rate
    return read, operations / few_rows_rate(torch, head.device, head.dtype, rows)


def step_seconds(model: Any, decoder: Any, rows: int, repeat: int) -> float:
    """Seconds of one decode step, without the choice of tokens."""
    import torch

    embeddings = model.get_input_embeddings()
    ids_B1 = torch.zeros(rows, 1, dtype=torch.long, device=embeddings.weight.device)

    def run() -> None:
        decoder.slots.select(0, [POSITIONS - 1 - row for row in range(rows)], 1)
        decoder.run(embeddings(ids_B1), masked=rows > 1, last=[0] * rows)

    with torch.inference_mode():
        run()
        return timed(run, repeat)


def print_steps(model: Any, decoder: Any, weights: int, rate: float, repeat: int) -> None:
    """Print steps of several sizes against their floors, with torch's kernels, and with packed weights if possible.

    Args:
        model: one that an engine has open, without packed weights.
        weights, rate: see :func:`step_floor`.
    """
    from torch import nn

    from videollama2.errors import ConfigError
    from videollama2.inference.kernels import PackedWeights
    from videollama2.model.linear import KernelLinear

    layers = [module for module in model.modules() if isinstance(module, KernelLinear)]
    ways: dict[str, tuple[type, PackedWeights | None]] = {"own": (KernelLinear, None), "torch": (nn.Linear, None)}
    with suppress(ConfigError):  # there may be nothing to pack
        ways["packed"] = KernelLinear, PackedWeights(model)

    def use(name: str) -> None:
        kind, decoder.packed = ways[name]
        for layer in layers:
            layer.__class__ = kind

    columns = ("read, ms", "compute", *(f"{name}, ms" for name in ways), *(f"{name}, %" for name in ways))
    print(f"\n{'rows of a step':14}" + "".join(f"{column:>11}" for column in columns))
    for rows in ROWS:
        seconds: dict[str, float] = {}
        for name in ways:
            use(name)
            seconds[name] = step_seconds(model, decoder, rows, repeat)
        read, compute = step_floor(model, decoder, rows, weights, rate)
        shares = [max(read, compute) / value for value in seconds.values()]
        cells = [f"{1e3 * value:11.1f}" for value in (read, compute, *seconds.values())]
        print(f"{rows:14}" + "".join(cells) + "".join(f"{share:11.0%}" for share in shares), flush=True)
    use("own")
