"""Notice that weights have changed, so that nothing computed from the old ones is used again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any
from weakref import ref

import torch

from videollama2.model.modeling import VideoLlama2ForConditionalGeneration


class WeightsWatch:
    """Tells when the weights of some modules have changed.

    A training step, ``load_state_dict``, a new parameter, a change of type or device, and an adapter switched on or off
    are noticed; a write through ``parameter.data`` is not.

    Args:
        modules: what is watched; it is not kept alive.
        walk: look through all modules each time, so that one put in another's place (as adapters are) is noticed too.
            That takes milliseconds for a large model; looking at the places found at first does not.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], walk: bool = False) -> None:
        self._modules = [ref(module) for module in modules]
        self._places = None if walk else self._walk()
        self._known = self._state()

    def changed(self) -> bool:
        """Whether the weights have changed since the last call."""
        known, self._known = self._known, self._state()
        return known != self._known

    def _walk(self) -> list[dict[str, Any]]:
        """Find the dictionaries that hold the weights and the state of adapters."""
        found = [inner for module in map(_call, self._modules) if module is not None for inner in module.modules()]
        # A layer's own dictionary, not the layer: that would keep the model alive.
        return [inner.__dict__ if hasattr(inner, "active_adapters") else inner._parameters for inner in found]

    def _state(self) -> list[Hashable]:
        state: list[Hashable] = []
        for place in self._walk() if self._places is None else self._places:
            if "_parameters" in place:
                state.append((place.get("_disable_adapters"), repr(place.get("_active_adapter"))))
                place = place["_parameters"]
            state += map(_version, place.values())
        return state


def _call(reference: Callable[[], Any]) -> Any:
    return reference()


def _version(weight: torch.Tensor | None) -> Hashable:
    if weight is None:
        return None
    # Weights made in inference mode count no writes.
    return id(weight), 0 if weight.is_inference() else weight._version, weight.dtype, weight.device


def media_modules(model: VideoLlama2ForConditionalGeneration) -> list[torch.nn.Module]:
    """Return the modules that make tokens of media: the encoders and connectors that the model has."""
    inner = model.model
    parts = (inner.vision_tower, inner.mm_projector, inner.audio_tower, inner.mm_projector_a)
    return [part for part in parts if part is not None]
