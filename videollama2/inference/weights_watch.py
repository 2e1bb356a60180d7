"""Noticing that weights have changed, so that nothing computed from the old ones is used again."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from videollama2.model.modeling import VideoLlama2ForConditionalGeneration


class WeightsWatch:
    """Tells when the weights of some modules have changed.

    A training step, ``load_state_dict`` and a new parameter are noticed; a write through ``parameter.data`` and a
    module put in another's place are not.
    """

    def __init__(self, modules: Iterable[torch.nn.Module]) -> None:
        # Walking through a model takes milliseconds, looking at the places it was walked through does not.
        self._places = [
            (inner._parameters, name) for module in modules for inner in module.modules() for name in inner._parameters
        ]
        self._known = self._state()

    def changed(self) -> bool:
        """Whether they have since the last time this was asked."""
        known, self._known = self._known, self._state()
        return known != self._known

    def _state(self) -> list[tuple[int, int]]:
        weights = (parameters.get(name) for parameters, name in self._places)
        # Weights made in inference mode count no writes.
        return [(id(weight), 0 if weight is None or weight.is_inference() else weight._version) for weight in weights]


def media_modules(model: VideoLlama2ForConditionalGeneration) -> list[torch.nn.Module]:
    """What makes tokens of media: the encoders and connectors that the model has."""
    inner = model.model
    parts = (inner.vision_tower, inner.mm_projector, inner.audio_tower, inner.mm_projector_a)
    return [part for part in parts if part is not None]
