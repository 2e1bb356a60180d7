"""Runs the model's forward passes over the slots: a chunk of prompts, or one token of every running request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch.nn.functional import pad

from videollama2.errors import ConfigError
from videollama2.inference.fixed_shapes import FixedShapes
from videollama2.inference.kernels import ATTENTION, PackedWeights
from videollama2.inference.kv_cache import KeyValueSlots
from videollama2.model.linear import changing_models, packed_weights
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

if TYPE_CHECKING:
    from videollama2.inference.task import Task

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Decoder:
    """Runs the language model over :class:`KeyValueSlots`.

    Args:
        cuda_graphs: replay decode steps as CUDA graphs.
        packed: copies of the weights, to be renewed when those change.

    Raises:
        ConfigError: ``cuda_graphs`` is set, but the model's steps cannot be recorded.
    """

    def __init__(
        self,
        model: VideoLlama2ForConditionalGeneration,
        max_batch: int,
        max_length: int,
        cuda_graphs: bool = False,
        packed: PackedWeights | None = None,
    ) -> None:
        self.model, self.packed = model, packed
        self.slots = KeyValueSlots(max_batch, max_length)
        config = model.config.text_config
        if cuda_graphs:
            _check_recordable(model)
        self.fixed = FixedShapes(self, record=True) if cuda_graphs else None
        if config._attn_implementation not in (ATTENTION, "eager"):
            # Flash and flex attention support neither rows of different lengths nor custom masks.
            model.model.language_model.set_attn_implementation(ATTENTION)
        self._eager = config._attn_implementation == "eager"
        self._layer_types = set(getattr(config, "layer_types", None) or ())
        self._window = getattr(config, "sliding_window", None)
        if not self._layer_types and self._window is not None:
            self._layer_types = {_SLIDING}

    def forget(self) -> None:
        """Drop what was made of the weights, because they have changed."""
        if self.fixed is not None:
            self.fixed.forget()
        if self.packed is not None:
            self.packed.renew()

    def prefill(self, first: int, tasks: Sequence[Task], count: int) -> torch.Tensor | None:
        """Compute the next prompt positions of the rows from ``first`` on, up to ``count`` per row.

        Returns:
            Logits (B, V) after the last token of each prompt if this pass completes all of them, else None.
        """
        counts = [min(count, task.remaining) for task in tasks]
        self.slots.select(first, [task.filled for task in tasks], count)
        embeds = [task.next_embeddings(own) for task, own in zip(tasks, counts, strict=True)]
        # Shorter prompts are padded at the end. What is computed there is never read, and is overwritten later.
        embeds_BLD = torch.cat([pad(rows_1LD, (0, 0, 0, count - rows_1LD.shape[1])) for rows_1LD in embeds])
        # Logits are computed for last positions only, and only if the prompts end here: lm_head is the widest layer.
        ends = all(task.remaining == own for task, own in zip(tasks, counts, strict=True))
        logits_BV = self.run(embeds_BLD, masked=len(tasks) > 1, last=[own - 1 for own in counts] if ends else None)
        for task, own in zip(tasks, counts, strict=True):
            task.filled += own
        return logits_BV

    def decode(self, tasks: list[Task]) -> torch.Tensor:
        """Decode one step of rows 0 to B - 1; returns logits (B, V) after each row's last token."""
        if self.fixed is not None:
            logits_BV = self.fixed.decode(tasks)
        else:
            weight = self.model.get_input_embeddings().weight
            ids_B1 = torch.tensor([[task.chooser.chosen[-1]] for task in tasks], device=weight.device)
            self.slots.select(0, [task.filled for task in tasks], 1)
            # A single row needs no custom mask.
            logits_BV = self.run(self.model.get_input_embeddings()(ids_B1), len(tasks) > 1, last=[0] * len(tasks))
        for task in tasks:
            task.filled += 1
        return logits_BV

    @overload
    def run(self, embeds_BLD: torch.Tensor, masked: bool, last: Sequence[int]) -> torch.Tensor: ...

    @overload
    def run(self, embeds_BLD: torch.Tensor, masked: bool, last: Sequence[int] | None) -> torch.Tensor | None: ...

    def run(self, embeds_BLD: torch.Tensor, masked: bool, last: Sequence[int] | None) -> torch.Tensor | None:
        """Run one pass over the rows selected in the slots.

        Returns:
            float32 logits (B, V) at position ``last`` of each row, or None without ``last``.
        """
        device = embeds_BLD.device
        with packed_weights(None if self.packed is None else self.packed.copies):
            hidden_BLD = self.model.model(
                inputs_embeds=embeds_BLD,
                attention_mask=self._masks(device, embeds_BLD.dtype) if masked else None,
                position_ids=self.slots.position_ids(device),
                past_key_values=self.slots,
                use_cache=True,
            ).last_hidden_state
            if last is None:
                return None
            hidden_BD = torch.stack([row_LD[index] for row_LD, index in zip(hidden_BLD, last, strict=True)])
            return self.model.lm_head(hidden_BD).float()

    def _masks(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the attention mask, or a dictionary of masks by layer type for decoders with several types."""
        if self._layer_types == {_FULL, _SLIDING}:
            return {_FULL: self._mask(device, dtype, None), _SLIDING: self._mask(device, dtype, self._window)}
        return self._mask(device, dtype, self._window if self._layer_types == {_SLIDING} else None)

    def _mask(self, device: torch.device, dtype: torch.dtype, window: int | None) -> torch.Tensor:
        mask = self.slots.mask(device, window)
        if self._eager:
            return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
        return mask


def _check_recordable(model: VideoLlama2ForConditionalGeneration) -> None:
    devices = {parameter.device for parameter in model.get_decoder().parameters()}
    if len(devices) > 1 or next(iter(devices)).type != "cuda":
        raise ConfigError(f"cuda_graphs need a language model on one GPU; it is on {', '.join(map(str, devices))}")
    if getattr(model.config.text_config, "num_local_experts", None):
        raise ConfigError("cuda_graphs cannot record a mixture of experts: what it computes depends on the tokens")
    if getattr(model, "quantization_method", None) is not None:
        raise ConfigError("cuda_graphs cannot record a quantised model")


class _Modes:
    """The settings of a model that an engine changes, as they are now."""

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        self._training = [(module, module.training) for module in model.modules()]
        self._attention = model.config.text_config._attn_implementation

    def restore(self, model: VideoLlama2ForConditionalGeneration) -> None:
        for module, training in self._training:
            module.training = training
        if model.config.text_config._attn_implementation != self._attention:
            model.model.language_model.set_attn_implementation(self._attention)


_open: dict[VideoLlama2ForConditionalGeneration, list[list[_Modes]]] = {}
"""What each engine that has a model open must restore, in the order in which they were opened: one entry for each."""


def remember_modes(model: VideoLlama2ForConditionalGeneration) -> Callable[[], None]:
    """Record the model settings that an engine changes (modes, attention); calling the result restores them.

    Several engines may have a model open, and may close in any order: one that was opened before another leaves it to
    the other to restore what it has found itself.
    """
    own = [_Modes(model)]
    with changing_models():
        _open.setdefault(model, []).append(own)

    def restore() -> None:
        with changing_models():
            engines = _open[model]
            place = next(number for number, each in enumerate(engines) if each is own)
            if place + 1 < len(engines):
                engines[place + 1][:] = own  # it has found what this engine had set
            else:
                own[0].restore(model)
            del engines[place]
            if not engines:
                del _open[model]

    return restore
