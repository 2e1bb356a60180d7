"""Defines the flags of ``train.py`` for the training data."""

from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from typing import Literal

from transformers.hf_argparser import string_to_bool

from videollama2.constants import MAX_FRAMES
from videollama2.errors import ConfigError, MediaError
from videollama2.media.frames import FrameSampling


@dataclass
class DataArguments:
    """Flags for the training data."""

    data_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Annotation files: JSON, tar shards, Parquet or folders of datasets; also at addresses (s3://...)."
        },
    )
    data_path_a: list[str] | None = field(
        default=None,
        metadata={"help": "More annotation files; the published audio stages name theirs here."},
    )
    va: list[str] | None = field(
        default=None,
        metadata={
            "help": "Whether the sound of videos is heard too: True or False, one value for each annotation file or "
            "one for all. A record may override it. Default: False."
        },
    )
    joint_ratio: list[int] | None = field(
        default=None,
        metadata={
            "help": "Ratio of audio-video, audio and other records in every batch. Default: 2 1 1 if --va is given and "
            "the data holds all three kinds."
        },
    )
    data_folder: str | None = field(
        default=None,
        metadata={"help": "Folder that media paths are relative to. Default: the annotation file's folder."},
    )
    data_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Share of an epoch for each file, one number per file. Default: every record once."},
    )
    data_weights_by: Literal["records", "tokens"] = field(
        default="records", metadata={"help": "Whether weights are shares of records or of tokens."}
    )
    data_curriculum: list[str] | None = field(
        default=None,
        metadata={
            "help": "Weights that change in the course of the run, in place of --data_weights: STEP:WEIGHT,WEIGHT,... "
            "for each phase, the first one from step 0."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read records while training, without counting them first; needs --max_steps."},
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={
            "help": "With --streaming: number of records among which the next one is drawn; 1 keeps their order."
        },
    )
    records_cache: str | None = field(
        default=None,
        metadata={"help": "Folder on a local disk that keeps checked records and their lengths by content."},
    )
    media_cache: str | None = field(
        default=None, metadata={"help": "Folder on a local disk that keeps the frames of decoded videos by content."}
    )
    media_cache_gb: float = field(
        default=100.0,
        metadata={"help": "With --media_cache: its maximum size; what was used least recently is removed."},
    )
    features: str | None = field(
        default=None,
        metadata={"help": "Folder of media features that `videollama2 data features` has written."},
    )
    packing: int | None = field(
        default=None,
        metadata={"help": "Pack records into rows of this many tokens; a batch size then counts rows."},
    )
    on_bad_sample: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "Whether an unusable record stops the run, or is left out and listed."},
    )
    eval_data_path: list[str] | None = field(
        default=None,
        metadata={"help": "Annotation files of evaluations, which log the loss and the share of right answers."},
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames per video. Default: the checkpoint's, or 8 for a new model."}
    )
    sampling: Literal["index", "time", "fps"] = field(
        default="index",
        metadata={"help": "Frames spread over their numbers or over time, or --fps a second."},
    )
    fps: float = field(default=1.0, metadata={"help": "With --sampling fps: frames per second."})
    max_frames: int = field(
        default=MAX_FRAMES,
        metadata={"help": "With --sampling fps: maximum number of frames of a video; they are spread over all of it."},
    )
    image_aspect_ratio: Literal["pad", "square"] | None = field(
        default=None,
        metadata={
            "help": "'pad' makes frames square with bars, 'square' resizes them as they are. Recorded in the "
            "checkpoint and used at inference. Default: the checkpoint's, or 'square' for a new model."
        },
    )

    @property
    def files(self) -> list[str]:
        """All annotation files of the training data."""
        return [*(self.data_path or ()), *(self.data_path_a or ())]

    @property
    def files_heard(self) -> list[tuple[str, bool]]:
        """All annotation files, those of the evaluation included, and whether their videos are heard."""
        heard = self.heard * len(self.files) if len(self.heard) == 1 else self.heard
        return [*zip(self.files, heard, strict=True), *((file, any(heard)) for file in self.eval_data_path or ())]

    @property
    def frame_sampling(self) -> FrameSampling:
        """The choice of a video's frames; a record's own number of frames comes first."""
        return FrameSampling.over(self.sampling, fps=self.fps, max_frames=self.max_frames)

    @property
    def heard(self) -> list[bool]:
        """The values of ``--va``: one for all annotation files, or one for each."""
        return [string_to_bool(value) for value in self.va or ("False",)]

    def __post_init__(self) -> None:
        try:
            FrameSampling("model" if self.num_frames is None else self.num_frames)
            FrameSampling(fps=self.fps, max_frames=self.max_frames)
        except MediaError as error:
            raise ConfigError(f"--{error}") from error
        for value in self.va or ():
            try:
                string_to_bool(value)
            except ArgumentTypeError as error:
                raise ConfigError(f"--va {value} must be True or False") from error
