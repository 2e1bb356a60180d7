"""Parses the command line of ``train.py``: :mod:`.flags` defines the flags, :mod:`.rules` what excludes what.

If a flag contradicts the configuration in the model folder, the run stops with an error (see :mod:`.model.build`).
"""

import sys
from collections.abc import Collection, Sequence

from videollama2.errors import ConfigError
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.help import Parser
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.recipe import given_flags, take_recipe, without_flags
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.rules.check import check_arguments

__all__ = ["Arguments", "DataArguments", "ModelArguments", "TrainingArguments", "parse_arguments"]

Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None, ignored: Collection[str] = ()) -> Arguments:
    """Read the command line (default ``sys.argv``) and check it.

    Args:
        ignored: names of flags that keep their defaults; ``given`` of the training arguments has their values.

    Raises:
        ConfigError: a flag does not exist or has a value of the wrong type, or flags contradict each other.
    """
    parser = Parser(
        (ModelArguments, DataArguments, TrainingArguments),
        prog="python -m videollama2.train",
        description="Train a video language model.",
    )
    argv = parser.spelled_out(sys.argv[1:] if argv is None else argv)
    recipe = given_flags(argv).get("recipe")
    argv = take_recipe(argv, {action.dest for action in parser._actions})
    try:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses(without_flags(argv, ignored))
    except (ValueError, TypeError) as error:  # the latter for unknown keys of a flag that is an object
        raise ConfigError(str(error)) from error
    training_args.recipe = recipe
    training_args.given = given_flags(argv)
    check_arguments(model_args, data_args, training_args)
    return model_args, data_args, training_args
