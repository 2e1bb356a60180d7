"""Puts fused Triton kernels of the package liger-kernel into the decoder (``--use_liger_kernel``).

They replace norms, rotary positions and gated products. transformers' own switch looks the model up by its type and
would replace nothing here, so that the decoder inside is handed over. The fused loss of that package is left out: the
output layer computes logits of a few positions at a time already (:mod:`videollama2.model.loss`).
"""

from __future__ import annotations

from typing import Any

from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration


def use_liger_kernels(model: VideoLlama2ForConditionalGeneration) -> None:
    """Let the decoder compute with Liger's kernels. Names of weights stay as they are.

    Raises:
        MissingDependencyError: liger-kernel is not installed.
        ConfigError: it has no kernels for this decoder.
    """
    try:
        from liger_kernel.transformers import monkey_patch  # pyright: ignore[reportMissingImports] - no dependency
    except ImportError as error:
        raise MissingDependencyError.of("--use_liger_kernel needs the package liger-kernel", "liger-kernel") from error
    patches: dict[str, Any] = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN
    decoder = model.get_decoder()
    kind = decoder.config.model_type
    if kind not in patches:
        raise ConfigError(f"--use_liger_kernel: liger-kernel has no kernels for the {kind} decoder")
    patches[kind](model=decoder, cross_entropy=False, fused_linear_cross_entropy=False)
