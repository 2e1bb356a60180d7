"""Encodes media into tokens: each distinct content once, and media of one kind together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from math import inf
from time import monotonic

import torch

from videollama2.inference.media.cache import MediaCache
from videollama2.inference.media.reader import ReadMedium
from videollama2.media.kinds import AUDIO, KINDS
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

FRAMES_PER_PASS = 128
"""Maximum number of frames encoded together: activations of more would take gigabytes and save no time."""

SOUND_FRAMES_PER_PASS = 4 * 2998
"""The same for frames of filter banks: four sounds of 30 s, each of which takes 110 MB for its attention biases."""

POSITIONS_PER_ROUND_ON_CPU = 4096
"""Number of the encoders' positions (patches of frames and of sounds) computed between two decode steps on a CPU: one
clip of 8 frames at 576, or seven images. There, more at once save no time, and all running answers wait for them."""


class MediaEncoder:
    """Encodes media for one model, on the thread that runs the model."""

    def __init__(self, model: VideoLlama2ForConditionalGeneration, cache: MediaCache) -> None:
        self.model, self.cache = model, cache

    def look_up(self, media: Sequence[ReadMedium]) -> None:
        """Replace the pixels or filter banks of those media whose tokens are cached.

        A medium counts as one hit or miss of the cache, however often it is looked up before it is encoded.

        Raises:
            PromptError: the model has no encoder for one of the media, even if its tokens are cached from before.
        """
        self.model.model.check_senses({medium.kind for medium in media})
        for medium in media:
            if medium.tokens is None and (not medium.looked_up or medium.key in self.cache):
                medium.looked_up = True
                medium.generation = self.cache.generation
                medium.tokens = self.cache.get(medium.key)
            if medium.tokens is not None:
                medium.values = None

    def is_outdated(self, medium: ReadMedium) -> bool:
        """Return whether a medium has tokens from before the cache was cleared, as after a change of weights."""
        return medium.tokens is not None and medium.generation != self.cache.generation

    def next_in_round(self, media: Sequence[ReadMedium], used: int) -> tuple[list[ReadMedium], int]:
        """Choose which media to encode before the next decode step: on a CPU as many as it computes in one round.

        Args:
            media: media in the order in which they are needed.
            used: number of positions that were encoded in this round before.

        Returns:
            The first media without tokens, and ``used`` with their positions. A round takes at least one medium.
            Media of the same content count once, and are all among them.
        """
        most = POSITIONS_PER_ROUND_ON_CPU if self.model.device.type == "cpu" else inf
        chosen: list[ReadMedium] = []
        keys: set[Hashable] = set()
        full = False
        for medium in media:
            if medium.tokens is not None:
                continue
            if medium.key not in keys:
                positions = self._positions(medium)
                # Once a medium has no room, no later one goes first, even if it is smaller.
                full = full or (used > 0 and used + positions > most)
                if full:
                    continue
                keys.add(medium.key)
                used += positions
            chosen.append(medium)
        return chosen, used

    def _positions(self, medium: ReadMedium) -> int:
        config = self.model.config
        if medium.kind == AUDIO:
            return config.hearing.tokens_of(medium.frames)
        return medium.frames * config.features_per_frame

    def encode(self, media: Sequence[ReadMedium]) -> None:
        """Replace the pixels or filter banks of all media by their tokens.

        Raises:
            PromptError: see :meth:`look_up`.
        """
        self.look_up(media)
        waiting: dict[Hashable, list[ReadMedium]] = {}
        for medium in media:
            if medium.tokens is None:
                waiting.setdefault(medium.key, []).append(medium)
        for kind in KINDS:
            for groups in _passes([group for group in waiting.values() if group[0].kind == kind]):
                self._encode_together(kind, groups)
        for medium in media:
            medium.values = None

    def _encode_together(self, kind: str, groups: list[list[ReadMedium]]) -> None:
        """Run one pass. Each group holds media of the same content, which is encoded once."""
        started = monotonic()
        # Inference mode is off, because its tensors could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            # Media without tokens have values, so none is left out here.
            values = [group[0].values for group in groups if group[0].values is not None]
            encoded = self.model.model.encode_media(kind, values)
        for group, tokens_ND in zip(groups, encoded, strict=True):
            # A view would keep the whole batch in memory as long as one of its members is cached.
            tokens_ND = tokens_ND.clone()
            self.cache.put(group[0].key, tokens_ND)
            for medium in group:
                medium.tokens, medium.generation = tokens_ND, self.cache.generation
        seconds = monotonic() - started
        for medium in {id(medium): medium for group in groups for medium in group}.values():
            medium.seconds += seconds


def _passes(groups: list[list[ReadMedium]]) -> Iterator[list[list[ReadMedium]]]:
    """Yield passes of at most :data:`FRAMES_PER_PASS` frames, or :data:`SOUND_FRAMES_PER_PASS` for sounds.

    A medium with more frames is a pass of its own. All groups have the same kind.
    """
    together: list[list[ReadMedium]] = []
    frames = 0
    for group in groups:
        most = SOUND_FRAMES_PER_PASS if group[0].kind == AUDIO else FRAMES_PER_PASS
        if together and frames + group[0].frames > most:
            yield together
            together, frames = [], 0
        together.append(group)
        frames += group[0].frames
    if together:
        yield together
