"""Reads the clips of a benchmark, and tells which questions share one and what of them is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from videollama2.errors import MediaError
from videollama2.eval.annotations import why_unreadable
from videollama2.eval.controls import altered
from videollama2.eval.items import Item
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, VIDEO
from videollama2.ranks import usable_cores

if TYPE_CHECKING:  # only answering needs torch; scoring answers and checking data must not import it
    import torch

    from videollama2.processing import ReadOptions

MAX_DECODE_THREADS = 8


@dataclass(frozen=True)
class ItemMedia:
    """The decoded media of an item.

    Attributes:
        media: kind and values of each medium; the values of a video with its sound are a dict, as processors return it.
        seconds: time taken to read them.
        note: remark about the sound, or None.
    """

    media: list[tuple[str, Any]]
    seconds: float
    note: str | None

    def altered(self, control: str, seed: str) -> list[tuple[str, Any]]:
        """Return the media with each video changed as a control changes it; images and sounds are not changed."""
        return [(kind, altered(values, control, seed) if kind == VIDEO else values) for kind, values in self.media]


class ClipReader:
    """Reads the media of items as a model sees and hears them. Threads may share one.

    Args:
        processor: processor of the model.
        data: folder to which media paths are relative.
        sampling: the choice of frames; an item's own bounds come on top.
        backend: name of the video reader.
    """

    def __init__(self, processor: Any, data: Path, sampling: FrameSampling, backend: str) -> None:
        self.processor, self.data, self.sampling, self.backend = processor, data, sampling, backend

    def read(self, item: Item) -> ItemMedia:
        """Read the media of an item.

        Raises:
            MediaError: a file is missing or cannot be read.
        """
        from videollama2.media.audio import SoundSampling
        from videollama2.processing import ReadOptions

        started = monotonic()
        media: list[tuple[str, Any]] = []
        notes: list[str] = []
        for number, (kind, name) in enumerate(item.all_media):
            # Bounds are about the first medium.
            start, end, crop = (item.start, item.end, item.crop_start) if number == 0 else (None, None, None)
            options = ReadOptions(
                replace(self.sampling, start=start, end=end),
                backend=self.backend,
                sound=SoundSampling(start, end, crop_start=crop),
            )
            values: Any
            values, note = self._read(kind, self.data / name, options)
            if kind == VIDEO and item.use_audio:
                fbank_1TF, note = self._read(AUDIO, self.data / name, ReadOptions(of_video=True))
                values = {VIDEO: values, AUDIO: fbank_1TF}
            media.append((kind, values))
            notes += [note] if note else []
        return ItemMedia(media, monotonic() - started, "; ".join(dict.fromkeys(notes)) or None)

    def _read(self, kind: str, path: Path, options: ReadOptions) -> tuple[torch.Tensor, str | None]:
        """Return the values of one medium, and a note about it or None."""
        try:
            if kind == AUDIO:
                return self.processor.hear(path, options)
            return self.processor.read(kind, path, options), None
        except MediaError:
            raise
        except OSError as error:
            raise MediaError(f"{path}: {why_unreadable(error)}") from error


def decode_threads() -> int:
    """Return how many threads read clips: the cores of this process, shared with its neighbours on the node."""
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(2, min(MAX_DECODE_THREADS, usable_cores() // neighbours))


def by_clip(items: Sequence[Item]) -> list[list[Item]]:
    """Group items that share a clip; the groups are in the order in which clips first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(item.clip, []).append(item)
    return list(groups.values())


def share_of_process(items: Sequence[Item], rank: int, world: int) -> list[Item]:
    """Return the share of process ``rank`` of ``world``: the items of every ``world``-th clip. It may be empty."""
    return [item for group in by_clip(items)[rank::world] for item in group]


def missing_media(items: Sequence[Item], data: Path) -> list[str]:
    """Return the paths of media that do not exist, each once."""
    paths = dict.fromkeys(path for item in items for _, path in item.all_media)
    return [path for path in paths if not (data / path).exists()]
