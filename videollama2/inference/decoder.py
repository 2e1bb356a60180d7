"""The model's forward passes over the slots: a chunk of one prompt, or one token of every running request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from videollama2.inference.slots import KeyValueSlots
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

if TYPE_CHECKING:
    from videollama2.inference.task import Task

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Decoder:
    """Runs the language model over :class:`KeyValueSlots`."""

    def __init__(self, model: VideoLlama2ForConditionalGeneration, max_batch: int, max_length: int) -> None:
        self.model = model
        self.slots = KeyValueSlots(max_batch, max_length)
        config = model.config.text_config
        if config._attn_implementation not in ("sdpa", "eager"):
            # Flash and flex attention read neither rows of different lengths nor masks of our own.
            model.model.language_model.set_attn_implementation("sdpa")
        self._eager = config._attn_implementation == "eager"
        self._layer_types = set(getattr(config, "layer_types", None) or ())
        self._window = getattr(config, "sliding_window", None)
        if not self._layer_types and self._window is not None:
            self._layer_types = {_SLIDING}

    def prefill(self, row: int, task: Task, count: int) -> torch.Tensor | None:
        """Compute the next ``count`` prompt positions; returns logits (V,) of the last one of all, else None."""
        self.slots.select(row, [task.filled], count)
        hidden_BLD = self._forward(task.next_embeddings(count))
        task.filled += count
        return self._logits(hidden_BLD)[0] if not task.remaining else None

    def decode(self, tasks: list[Task]) -> torch.Tensor:
        """One step of rows 0 to B - 1: logits (B, V) behind each one's last token."""
        weight = self.model.get_input_embeddings().weight
        ids = torch.tensor([[task.chooser.chosen[-1]] for task in tasks], device=weight.device)
        self.slots.select(0, [task.filled for task in tasks], 1)
        hidden_BLD = self._forward(self.model.get_input_embeddings()(ids))
        for task in tasks:
            task.filled += 1
        return self._logits(hidden_BLD)

    def _logits(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(hidden_BLD[:, -1]).float()

    def _forward(self, embeds_BLD: torch.Tensor) -> torch.Tensor:
        device = embeds_BLD.device
        return self.model.model(
            inputs_embeds=embeds_BLD,
            attention_mask=self._masks(device, embeds_BLD.dtype) if embeds_BLD.shape[0] > 1 else None,
            position_ids=self.slots.position_ids(device),
            past_key_values=self.slots,
            use_cache=True,
        ).last_hidden_state

    def _masks(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The mask, or one per kind of layer where a decoder mixes them. A single row needs none of ours."""
        if self._layer_types == {_FULL, _SLIDING}:
            return {_FULL: self._mask(device, dtype, None), _SLIDING: self._mask(device, dtype, self._window)}
        return self._mask(device, dtype, self._window if self._layer_types == {_SLIDING} else None)

    def _mask(self, device: torch.device, dtype: torch.dtype, window: int | None) -> torch.Tensor:
        mask = self.slots.mask(device, window)
        if self._eager:
            return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
        return mask
