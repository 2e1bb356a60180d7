"""How one medium is read, from what a caller says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from videollama2.errors import PromptError
from videollama2.media.audio import SoundSampling, Windows
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, KINDS, with_article

Shape = Literal["pad", "square", "model"] | None
"""What is done about frames that are not square, see :data:`videollama2.media.pixels.AspectRatio`; "model" does what
the checkpoint was trained with where it says so, else None (published at inference)."""

_OWN = ("aspect_ratio", "backend", "use_audio", "windows")


@dataclass(frozen=True)
class ReadOptions:
    """Everything a caller can say about reading one medium.

    Attributes:
        sampling: which frames of a video are looked at; an image has none to choose.
        aspect_ratio: see :data:`Shape`.
        backend: video decoder, see :func:`videollama2.media.video.open_video`.
        use_audio: a video is heard too.
        windows: of a video's sound, see :class:`~videollama2.media.audio.SoundSampling`.
        sound: which part of a sound is heard.
        of_video: a sound is that of a video, see :func:`videollama2.media.audio.read_video_sound`.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    aspect_ratio: Shape = "model"
    backend: str = "auto"
    use_audio: bool = False
    windows: Windows = "published"
    sound: SoundSampling = field(default_factory=SoundSampling)
    of_video: bool = False

    @property
    def of_its_sound(self) -> ReadOptions:
        """How the sound of a video is read: within the same bounds."""
        start, end = self.sampling.bounds()
        return ReadOptions(sound=SoundSampling(start, end, windows=self.windows), of_video=True)

    @classmethod
    def of(cls, kind: str, options: Mapping[str, Any]) -> ReadOptions:
        """From the fields of a message part, or keyword arguments: flat, and only those that were given.

        Raises:
            PromptError: a medium of this kind has no such option.
            MediaError: a value breaks a rule of :class:`~videollama2.media.frames.FrameSampling`, or of
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
