"""Decodes media of strangers in the sandbox, and makes parts of an engine's messages of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, VIDEO
from videollama2.serve.untrusted_media.replies import frame_bytes
from videollama2.serve.untrusted_media.sandbox import EncodedSource, Sandbox

_OF_SOUND = ("use_audio", "windows")


@dataclass(frozen=True)
class DecodedPart:
    """A medium that was read.

    Attributes:
        part: the part of a message that an engine takes.
        size: bytes of its frames and its sound.
        note: remark for the operator's log, or None: for example that a video has no sound track.
    """

    part: dict[str, Any]
    size: int
    note: str | None = None


async def decode_part(sandbox: Sandbox, kind: str, source: EncodedSource, options: Mapping[str, Any]) -> DecodedPart:
    """Decode a medium.

    Args:
        kind: a key of :data:`~videollama2.media.kinds.KINDS`.
        options: options of :meth:`Sandbox.read` or, for a sound, :meth:`Sandbox.hear`; for a video also ``use_audio``,
            whether its sound is used too, and ``windows`` of that sound.

    Raises:
        RefusedMediaError: the medium cannot be decoded, or not within the limits.
    """
    if kind == AUDIO:
        sound = await sandbox.hear(source, options)
        return DecodedPart({"type": AUDIO, AUDIO: sound}, sound.wave_S.nbytes, sound.note)
    sampling = {name: value for name, value in options.items() if name not in _OF_SOUND}
    frames = await sandbox.read(kind, source, sampling)
    if kind != VIDEO:
        return DecodedPart({"type": kind, kind: frames}, frame_bytes(frames))
    # The model gets all of the frames: they were already sampled when the video was read.
    part = {"type": VIDEO, VIDEO: frames, "num_frames": len(frames)}
    if not options.get("use_audio"):
        return DecodedPart(part, frame_bytes(frames))
    sound = await sandbox.hear(source, sound_options(options))
    size = frame_bytes(frames) + sound.wave_S.nbytes
    return DecodedPart({**part, VIDEO: {VIDEO: frames, AUDIO: sound}}, size, sound.note)


def sound_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for the sound of a video that is read with these options."""
    sampling = {name: options[name] for name in ("start", "end") if name in options}
    start, end = FrameSampling(**sampling).bounds()
    return {"start": start, "end": end, "windows": options.get("windows") or "published", "of_video": True}
