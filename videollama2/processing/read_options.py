"""How one medium is read, from what a caller says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from videollama2.errors import PromptError
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import KINDS, with_article

Shape = Literal["pad", "square", "model"] | None
"""What is done about frames that are not square, see :data:`videollama2.media.pixels.AspectRatio`; "model" does what
the checkpoint was trained with where it says so, else None (published at inference)."""

_OWN = ("aspect_ratio", "backend")


@dataclass(frozen=True)
class ReadOptions:
    """Everything a caller can say about reading one medium.

    Attributes:
        sampling: which frames of a video are looked at; an image has none to choose.
        aspect_ratio: see :data:`Shape`.
        backend: video decoder, see :func:`videollama2.media.video.open_video`.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    aspect_ratio: Shape = "model"
    backend: str = "auto"

    @classmethod
    def of(cls, kind: str, options: Mapping[str, Any]) -> ReadOptions:
        """From the fields of a message part, or keyword arguments: flat, and only those that were given.

        Raises:
            PromptError: a medium of this kind has no such option.
            MediaError: a value breaks a rule of :class:`~videollama2.media.frames.FrameSampling`.
        """
        unknown = set(options) - KINDS[kind].options
        if unknown:
            raise PromptError(f"{with_article(kind)} has no option {', '.join(sorted(unknown))}")
        sampling = FrameSampling(**{name: value for name, value in options.items() if name not in _OWN})
        return cls(sampling, **{name: options[name] for name in _OWN if name in options})
