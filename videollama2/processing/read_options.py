"""Defines the options for reading one medium, as a caller gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from videollama2.errors import PromptError
from videollama2.media.audio import SoundSampling, Windows
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, KINDS, with_article

PadShape = Literal["pad", "square", "model"] | None
"""The treatment of frames that are not square, see :data:`videollama2.media.pixels.AspectRatio`. "model" is the one
with which the checkpoint was trained, if it records that, else None (published at inference)."""

_OWN = ("aspect_ratio", "backend", "use_audio", "windows")


@dataclass(frozen=True)
class ReadOptions:
    """All options for reading one medium.

    Attributes:
        sampling: the choice of a video's frames; ignored for images.
        aspect_ratio: see :data:`PadShape`.
        backend: video decoder, see :func:`videollama2.media.video.open_video`.
        use_audio: whether the sound of a video is used too.
        windows: windows of a video's sound, see :class:`~videollama2.media.audio.SoundSampling`.
        sound: the part of a sound that is used.
        of_video: whether a sound belongs to a video, see :func:`videollama2.media.audio.read_video_sound`.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    aspect_ratio: PadShape = "model"
    backend: str = "auto"
    use_audio: bool = False
    windows: Windows = "published"
    sound: SoundSampling = field(default_factory=SoundSampling)
    of_video: bool = False

    @property
    def of_its_sound(self) -> ReadOptions:
        """Return the options for reading the sound of this video, within the same bounds."""
        start, end = self.sampling.bounds()
        return ReadOptions(sound=SoundSampling(start, end, windows=self.windows), of_video=True)

    @classmethod
    def of(cls, kind: str, options: Mapping[str, Any]) -> ReadOptions:
        """Make options from the fields of a message part or flat keyword arguments; absent ones keep their defaults.

        Raises:
            PromptError: an option does not apply to media of this kind.
            MediaError: a value is invalid for :class:`~videollama2.media.frames.FrameSampling` or
                :class:`~videollama2.media.audio.SoundSampling`.
        """
        unknown = set(options) - KINDS[kind].options
        if unknown:
            raise PromptError(f"{with_article(kind)} has no option {', '.join(sorted(unknown))}")
        if kind == AUDIO:
            sound = SoundSampling(**{name: value for name, value in options.items() if name != "of_video"})
            return cls(sound=sound, of_video=bool(options.get("of_video", False)))
        sampling = FrameSampling(**{name: value for name, value in options.items() if name not in _OWN})
        return cls(sampling, **{name: options[name] for name in _OWN if name in options})
