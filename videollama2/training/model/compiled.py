"""Compiles the layers of the decoder for sequences of any length (``--torch_compile``).

A whole model would be compiled anew for every mixture of media. The layers of the decoder see only a number of records
and of tokens, and all of them share their code, so that one compilation, with both numbers left open, serves all layers
and steps. Names of weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from videollama2.errors import ConfigError, MissingDependencyError, first_line
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags.run import TrainingArguments


def compile_layers(model: VideoLlama2ForConditionalGeneration, args: TrainingArguments) -> None:
    """Let the decoder's layers be compiled when they first run.

    Raises:
        ConfigError: torch has no ``--torch_compile_mode`` of that name.
        MissingDependencyError: the backend ``inductor`` lacks the compiler that it needs on this machine.
    """
    backend = args.torch_compile_backend or "inductor"
    if backend == "inductor":
        _check_compiler(args.device)
    options: dict[str, Any] = {"backend": backend, "mode": args.torch_compile_mode, "dynamic": True}
    try:
        for layer in cast("nn.ModuleList", model.get_decoder().layers):
            layer.compile(**options)
    except RuntimeError as error:
        raise ConfigError(f"--torch_compile_mode {args.torch_compile_mode}: {first_line(error)}") from error


def _check_compiler(device: torch.device) -> None:
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise MissingDependencyError(
                f"--torch_compile needs a C++ compiler such as g++ on a CPU ({first_line(error)})"
            ) from error
    else:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise MissingDependencyError.of("--torch_compile needs the package triton on a GPU", "triton")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled layers as they are written inside the block: inference with its caches has other shapes."""
    with torch.compiler.set_stance("force_eager"):
        yield
