"""Detects changes of weights, so that caches computed with the old ones are not used again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any
from weakref import ref

import torch

from videollama2.model.linear import writes
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

_OF_ADAPTERS = ("_disable_adapters", "_active_adapter", "merged_adapters")
"""Attributes of peft's layers. Merging adds to ``weight.data``, which torch does not count as a write."""


class WeightsWatch:
    """Detects changes of the weights of some modules.

    It detects a training step, ``load_state_dict``, a new parameter, a change of dtype or device, and an adapter being
    enabled, disabled or merged, but not a write through ``parameter.data``.

    Args:
        modules: the modules to watch; they are not kept alive.
        walk: search all modules on each check, so that replaced modules (as by adapters) are detected too. That takes
            milliseconds for a large model; checking only the places found at first takes less.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], walk: bool = False) -> None:
        self._modules = [ref(module) for module in modules]
        self._places = None if walk else self._walk()
        self._known = self._state()
        self._writes = self._count_writes()

    def changed(self) -> bool:
        """Return whether the weights have changed since the last call."""
        known, self._known = self._known, self._state()
        self._writes = self._count_writes()
        return known != self._known

    def written(self) -> bool:
        """Return whether weights were written to since the last call of :meth:`changed`.

        This notices training steps and ``load_state_dict`` only, and takes a fifth of the time.
        """
        return self._writes != self._count_writes()

    def _walk(self) -> list[dict[str, Any]]:
        """Find the dictionaries that hold the weights and the state of adapters."""
        found = [inner for module in map(_call, self._modules) if module is not None for inner in module.modules()]
        # Only the dictionaries of a layer are kept, since a reference to the layer would keep the model alive.
        return [inner.__dict__ if hasattr(inner, "active_adapters") else inner._parameters for inner in found]

    def _state(self) -> list[Hashable]:
        state: list[Hashable] = []
        for place in self._walk() if self._places is None else self._places:
            if "_parameters" in place:
                state.append(tuple(repr(place.get(name)) for name in _OF_ADAPTERS))
                place = place["_parameters"]
            state += map(_version, place.values())
        return state

    def _count_writes(self) -> int:
        places = self._walk() if self._places is None else self._places
        weights = (weight for place in places for weight in place.get("_parameters", place).values())
        return sum(writes(weight) for weight in weights if weight is not None)


def _call(reference: Callable[[], Any]) -> Any:
    return reference()


def _version(weight: torch.Tensor | None) -> Hashable:
    if weight is None:
        return None
    return id(weight), writes(weight), weight.dtype, weight.device


def media_modules(model: VideoLlama2ForConditionalGeneration) -> list[torch.nn.Module]:
    """Return the modules that turn media into tokens: the encoders and connectors of the model."""
    inner = model.model
    parts = (inner.vision_tower, inner.mm_projector, inner.audio_tower, inner.mm_projector_a)
    return [part for part in parts if part is not None]
