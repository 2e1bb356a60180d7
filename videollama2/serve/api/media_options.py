"""Defines the options by which a client selects the frames of a video and the part of a sound."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from videollama2.constants import MAX_NUM_FRAMES
from videollama2.errors import MediaError
from videollama2.media.frames import check_num_frames
from videollama2.serve.api.fields import Body, Finite, Seconds, Whole, error

Windows = Literal["published", "whole"]


def _number_of_frames(value: int) -> int:
    """Refuse a number in the words of every other place where one is given."""
    try:
        return check_num_frames(value)
    except MediaError as fault:
        raise error("num_frames", str(fault)) from fault


class VideoOptions(Body):
    """Selects the frames of a video that the model looks at, and whether it hears the sound."""

    num_frames: Annotated[Whole, AfterValidator(_number_of_frames)] | None = Field(
        None, description=f"Frames, 1 to {MAX_NUM_FRAMES}, spread evenly; default the model's."
    )
    fps: Finite | None = Field(
        None,
        gt=0,
        le=1000,
        description="Frames per second of the video, at most 32 in all. 1: the middle frame of each second, as "
        "published; other rates: as many frames as that gives, spread evenly.",
    )
    start: Seconds | None = Field(None, description="Seconds: use the video from here.")
    end: Seconds | None = Field(None, description="Seconds: use the video up to here.")
    sampling: Literal["index", "time"] | None = Field(
        None, description="Spread frames over their numbers (index, the default) or the clip's seconds (time)."
    )
    use_audio_in_video: bool | None = Field(None, description="Whether the sound is heard too. Default false.")
    windows: Windows | None = Field(
        None, description="Windows of the sound that are heard: published never reaches the end, whole does."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> VideoOptions:
        if self.fps is not None and self.num_frames is not None:
            raise error("fps", "fps and num_frames exclude each other")
        return self

    def given(self) -> dict[str, Any]:
        """Return the options that are set, under the names of :class:`videollama2.media.frames.FrameSampling`."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("num_frames", "start", "end", "sampling")}
        found = {name: value for name, value in found.items() if value is not None}
        # A number and a rate replace each other where options of several levels are merged. In FrameSampling,
        # num_frames=None without a rate means one frame per second.
        if self.fps is not None:
            return {**found, "num_frames": None, "fps": None if self.fps == 1 else self.fps}
        return {**found, "fps": None} if self.num_frames is not None else found


class AudioOptions(Body):
    """Selects the part of a sound that the model hears."""

    start: Seconds | None = Field(None, description="Seconds: use the sound from here.")
    end: Seconds | None = Field(None, description="Seconds: use the sound up to here.")
    channels: Literal["published", "mix"] | None = Field(
        None, description="published: the first channel of a sound file alone; mix: the mean of all."
    )
    windows: Windows | None = Field(None, description="As for videos, where a video is sent to be heard only.")

    def given(self) -> dict[str, Any]:
        """Return the options that are set, under the names of :class:`videollama2.media.audio.SoundSampling`."""
        found = {name: getattr(self, name) for name in ("start", "end", "channels", "windows")}
        return {name: value for name, value in found.items() if value is not None}


class MediaIOOptions(Body):
    """vLLM's ``media_io_kwargs``: options for each kind of medium."""

    video: VideoOptions | None = None
    audio: AudioOptions | None = None
    image: dict[str, Any] | None = Field(None, description="Accepted, without effect: images are read in one way.")
