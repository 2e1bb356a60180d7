"""Makes the model of a training without weights (fake tensors), and counts what autograd keeps of its step.

Connector, decoder and encoders that learn run forward as in training, so that what autograd would keep for the backward
pass can be counted instead of estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from videollama2.config import VideoLlama2Config
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.model.lora import add_lora

Precision = Literal["float32", "autocast", "bfloat16"]
"""Of a step: with ``autocast``, weights that learn have 32 bits and frozen ones 16; with ``bfloat16``, all have 16."""


@dataclass(frozen=True)
class Matrices:
    """Settings of :func:`~videollama2.training.model.lora.add_lora`. Without a rank, the weights learn themselves."""

    lora_r: int
    adapted_parts: frozenset[str]
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    lora_target: str | None = None
    lora_rslora: bool = False
    lora_dora: bool = False


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps until the backward pass.

    Attributes:
        layers: those of the decoder.
    """

    encoder: float
    connector: float
    layers: float

    @property
    def sum(self) -> float:
        """All of them."""
        return self.encoder + self.connector + self.layers


class CountedModel:
    """A model that is prepared for training like a real one, without weights.

    Args:
        matrices: the low-rank matrices; ``None`` if the connector's and the decoder's weights learn.
        connector_alone: without matrices, whether the decoder is frozen too, as in the first stage.

    Raises:
        MissingDependencyError: there are matrices, and peft is not installed.
    """

    def __init__(
        self,
        config: VideoLlama2Config,
        precision: Precision,
        matrices: Matrices | None = None,
        connector_alone: bool = False,
    ) -> None:
        self.config, self.precision = config, precision
        with torch.device("meta"):
            self.model = VideoLlama2ForConditionalGeneration(config).train()
            inner = self.model.model
            if matrices is not None:
                add_lora(self.model, matrices)
                if inner.mm_projector is not None:
                    inner.mm_projector.requires_grad_(True)
            else:
                decoder = (inner.language_model, self.model.lm_head) if connector_alone else ()
                for part in (inner.vision_tower, inner.audio_tower, inner.mm_projector_a, *decoder):
                    if part is not None:
                        part.requires_grad_(False)
        # Fake tensors know shapes and dtypes and have no content, so that the counting of a 7B model takes neither its
        # memory nor its time.
        with FakeTensorMode(allow_non_fake_inputs=True) as self.mode:
            self._leave_meta()
        self._kept: dict[tuple[int, int, int, bool], Kept] = {}

    def _leave_meta(self) -> None:
        """Make fake tensors of a CPU of all tensors, since autocast does not act on the ``meta`` device."""
        made: dict[int, nn.Parameter] = {}
        for module in self.model.modules():
            for name, old in module.named_parameters(recurse=False, remove_duplicate=False):
                # Tied weights are one parameter before and after, or they would be counted twice.
                if id(old) not in made:
                    halved = self.precision == "bfloat16" or (self.precision == "autocast" and not old.requires_grad)
                    new = torch.empty(old.shape, dtype=torch.bfloat16 if halved else old.dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad)
                module.register_parameter(name, made[id(old)])
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))

    # ------------------------------------------------------------------------------------------------- weights

    @property
    def learning(self) -> int:
        """Number of weights that learn."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def total(self) -> int:
        """Number of all weights, those of the matrices included."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def into_matrices(self) -> int:
        """Number of numbers that go into low-rank matrices of the decoder for a token."""
        modules = self.model.model.language_model.named_modules()
        return sum(m.in_features for name, m in modules if isinstance(m, nn.Linear) and ".lora_A." in name)

    @property
    def copied(self) -> int:
        """Number of weights below the output layer of which autocast makes 16-bit copies."""
        if self.precision != "autocast":
            return 0
        modules = [m for m in self.model.model.modules() if not isinstance(m, nn.Embedding)]
        own = (p for module in modules for p in module.parameters(recurse=False))
        return sum(p.numel() for p in own if p.requires_grad and p.ndim > 1)

    @property
    def stream_size(self) -> int:
        """Bytes of a number that the decoder's layers hand on."""
        return self.model.get_input_embeddings().weight.element_size()

    # --------------------------------------------------------------------------------------------- activations

    def kept(self, records: int, tokens: int, clips: int, recompute: bool) -> Kept:
        """Return what autograd keeps at the end of the forward pass.

        Args:
            clips: number of all clips.
            recompute: whether layers and the connector's stages compute their activations again in the backward pass.
        """
        key = records, tokens, clips, recompute
        if key not in self._kept:
            for module in self.model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.gradient_checkpointing = recompute
                    cast("Any", module)._gradient_checkpointing_func = _again
            with self.mode, torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "autocast"):
                self._kept[key] = self._count(*key)
        return self._kept[key]

    def _count(self, records: int, tokens: int, clips: int, recompute: bool) -> Kept:
        inner, config = self.model.model, self.config
        of_encoder = of_connector = 0.0
        if inner.vision_tower is not None and inner.mm_projector is not None:
            dtype = next(inner.vision_tower.parameters()).dtype  # of an embedding, which has no matrices
            if any(p.requires_grad for p in inner.vision_tower.parameters()):
                side = inner.vision_tower.config.image_size
                with kept_by_autograd(self.model) as kept:
                    inner.encode_vision(torch.empty(clips * config.num_frames, 3, side, side, dtype=dtype))
                of_encoder = kept()
            shape = clips, config.num_frames, config.patches_per_side**2, config.mm_hidden_size
            cast("Any", inner.mm_projector).gradient_checkpointing = recompute  # read by connectors with stages
            with kept_by_autograd(self.model) as kept:
                inner.mm_projector(torch.empty(shape, dtype=dtype))
            of_connector = kept()
        dtype = self.model.get_input_embeddings().weight.dtype
        # As in training, where the connector below learns: without a gradient at its input, the first layer would keep
        # less.
        embeds_BLD = torch.empty(records, tokens, config.hidden_size, dtype=dtype, requires_grad=True)
        with kept_by_autograd(self.model) as kept:
            inner.language_model(inputs_embeds=embeds_BLD, use_cache=False)
        return Kept(of_encoder, of_connector, kept())


def _again(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


@contextmanager
def kept_by_autograd(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Give a function that returns the bytes of what autograd has kept in the block, weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            # By storage: views of one tensor are kept once, and weights are counted elsewhere.
            found[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: float(sum(storage.nbytes() for storage in found.values()))
