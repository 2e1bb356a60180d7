"""Builds the audio encoder and projector of the model to train, as the flags ask for them."""

from __future__ import annotations

from pathlib import Path

from videollama2.checkpoints.audio_tower import add_hearing, load_beats
from videollama2.checkpoints.connector import load_audio_connector
from videollama2.errors import ConfigError
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.model.weights_file import weights_file

NEW_PROJECTOR = "mlp2x_gelu"
"""Audio projector of a model that does not hear yet if no flag names one; all published audio models have it."""

_NEEDS_EARS = (
    *("mm_projector_a_type", "pretrain_mm_mlp_adapter_a", "tune_mm_mlp_adapter_a", "tune_audio_tower"),
    *("tune_adapter_llm", "audio_gradient_multiplier"),
)


def set_hearing(
    model: VideoLlama2ForConditionalGeneration, args: ModelArguments, data_args: DataArguments, path: str
) -> None:
    """Add the audio encoder and a projector that the flags name, or check the flags against those of the model.

    Args:
        path: the model's name, for messages.

    Raises:
        ConfigError: a flag needs an audio encoder and there is none, or contradicts the model.
        CheckpointError: weights do not fit.
    """
    if model.config.hears:
        _check_fixed(model, args, path)
    elif args.audio_tower:
        add_hearing(model, *new_ears(args))
    elif needing := [*_asked(args), *_data_with_sound(data_args)]:
        raise ConfigError(
            f"--{needing[0]} needs a model that hears, but {path} has no audio encoder; give --audio_tower"
        )
    if args.pretrain_mm_mlp_adapter_a:
        load_audio_connector(model, weights_file("pretrain_mm_mlp_adapter_a", args.pretrain_mm_mlp_adapter_a))
    if args.audio_gradient_multiplier is not None and model.model.audio_tower is not None:
        model.model.audio_tower.scale_gradients(args.audio_gradient_multiplier)


def new_ears(args: ModelArguments) -> tuple[BeatsModel, str, str]:
    """Return the audio encoder that ``--audio_tower`` names, its absolute path, and the type of its projector."""
    file = weights_file("audio_tower", args.audio_tower or "")
    return load_beats(file), str(file.resolve()), args.mm_projector_a_type or NEW_PROJECTOR


def _asked(args: ModelArguments) -> list[str]:
    return [name for name in _NEEDS_EARS if getattr(args, name) not in (None, False)]


def _data_with_sound(args: DataArguments) -> list[str]:
    """Return the flags that announce sound in the data; without ears, each of its records would be a bad one."""
    return [name for name, given in (("va", any(args.heard)), ("data_path_a", args.data_path_a)) if given]


def _check_fixed(model: VideoLlama2ForConditionalGeneration, args: ModelArguments, path: str) -> None:
    for flag, name in {"audio_tower": "mm_audio_tower", "mm_projector_a_type": "mm_projector_a_type"}.items():
        asked, found = getattr(args, flag), getattr(model.config, name)
        # The model names its encoder's file by an absolute path.
        if asked is not None and found not in (asked, str(Path(asked).resolve())):
            raise ConfigError(
                f"--{flag} {asked} contradicts --model_path {path}, a whole model whose {name} is {found!r}"
            )
