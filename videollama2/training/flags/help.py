"""Prints the ``--help`` of ``train.py``: its own flags, in groups, and those of transformers often needed.

transformers adds more than a hundred flags. ``--help`` lists the names of the others; ``--help_all`` describes all.
"""

from __future__ import annotations

import argparse
import copy
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import transformers
from transformers import HfArgumentParser

from videollama2.commands import CommandParser, one_line
from videollama2.errors import ConfigError
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.evaluation import EvaluationFlags
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.objective import ObjectiveFlags
from videollama2.training.flags.run import TrainingArguments

_OWN = tuple(f.name for f in fields(TrainingArguments) if f.name not in transformers.TrainingArguments.__annotations__)
_OWN_FLAGS = {*_OWN, *(f.name for kind in (ModelArguments, DataArguments) for f in fields(kind))}
_LORA = ("lora_", "bits", "double_quant", "quant_type")

FOLDED = (
    *(
        "double_quant",
        "quant_type",
        "data_path_a",
        "joint_ratio",
        "audio_gradient_multiplier",
        "pretrain_mm_mlp_adapter_a",
    ),
    *("shuffle_buffer", "fps", "max_frames", "media_cache_gb", "features", "eval_benchmarks_folder", "eval_questions"),
    *("data_weights_by", "data_curriculum", "freeze_regex"),
    *("image_aspect_ratio", "pretrain_labels", "mm_vision_select_feature", "mm_projector_a_type"),
    *("sample_answers", "answer_updates", "clip_ratio"),
)
"""Flags of this program that few runs need. ``--help`` lists their names, ``--help_all`` describes them."""


def _unfolded(kind: Any) -> Iterator[str]:
    return (f.name for f in fields(kind) if f.name not in FOLDED)


GROUPS: dict[str, tuple[str, ...]] = {
    "the model: its parts, and which of them learn": tuple(_unfolded(ModelArguments)),
    "the data": (
        *_unfolded(DataArguments),
        *("model_max_length", "group_by_modality_length", "eval_strategy", "eval_steps"),
        *_unfolded(EvaluationFlags),
    ),
    "learning": (
        *_unfolded(ObjectiveFlags),
        *("learning_rate", "mm_projector_lr", "vision_tower_lr", "freeze_mm_mlp_adapter", "num_train_epochs"),
        *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay"),
        *("max_grad_norm", "lr_scheduler_type", "warmup_steps", "seed"),
    ),
    "LoRA and quantisation": tuple(name for name in _OWN if name.startswith(_LORA) and name not in FOLDED),
    "memory and speed": (
        *(
            "bf16",
            "gradient_checkpointing",
            "gradient_checkpointing_parts",
            "gradient_checkpointing_every",
            "torch_compile",
            "use_liger_kernel",
            "deepspeed",
            "fully_shard",
            "dataloader_num_workers",
        ),
    ),
    "the run": (
        *("recipe", "output_dir", "overwrite_output_dir", "save_strategy", "save_steps", "save_total_limit"),
        *("resume_from_checkpoint", "resume_older", "logging_steps", "report_to", "run_name"),
    ),
}
"""The flags under each title of ``--help``. Every flag of this program is in one of the groups, or folded."""

_SAID = {
    "gradient_checkpointing": "Recompute activations instead of keeping them: less memory, a quarter more time.",
    "resume_from_checkpoint": "Resume from this checkpoint instead of the last one in --output_dir.",
    "output_dir": "Where checkpoints and the result are written.",
    "lr_scheduler_type": "linear, cosine, constant, constant_with_warmup, cosine_with_min_lr, ...",
}
"""Descriptions of flags for which those of transformers do not fit this program."""

_WIDTH = 120
_FEW = 6
"""Largest number of choices that the help lists."""


class Parser(CommandParser, HfArgumentParser):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The dataclass parser of transformers, with a help of a few screens and errors of one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=_formatter, **kwargs)
        nothing = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "nargs": 0}
        self.add_argument("--help_all", action=_HelpAll, help="Describe every flag of transformers too.", **nothing)

    def spelled_out(self, argv: Sequence[str]) -> list[str]:
        """Return a command line whose flags have their whole names, and ``--x=False`` in place of ``--no_x``."""
        return [self._spelled_out(word) if word.startswith("--") else word for word in argv]

    def _spelled_out(self, word: str) -> str:
        name, is_assigned, value = word.partition("=")
        options = self._option_string_actions
        meant = [name] if name in options else [option for option in options if option.startswith(name)]
        actions = {id(action): action for action in map(options.__getitem__, meant)}
        if len(actions) != 1:
            return word
        (action,) = actions.values()
        if _is_negation(action):
            return f"--{action.dest}=False"
        return f"{action.option_strings[0]}{is_assigned}{value}"

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, whose text every process of a run may show or keep to itself."""
        raise ConfigError(f"{one_line(message)} (--help lists the flags)")

    def format_help(self) -> str:
        """Return the text of ``--help``: the groups of flags, then the names of all other flags."""
        actions = {action.dest: action for action in self._actions if not _is_negation(action)}
        formatter = self._get_formatter()
        formatter.add_text(f"usage: {self.prog} --model_path NAME --data_path FILE ... --output_dir DIR [flags]")
        formatter.add_text(self.description)
        for title, names in GROUPS.items():
            formatter.start_section(title)
            formatter.add_arguments([_short(actions.pop(name)) for name in names])
            formatter.end_section()
        folded = [actions.pop(name).dest for name in FOLDED]
        others = [name for name in sorted(actions) if name not in ("help", argparse.SUPPRESS)]
        end = "Switches take True or False (default); --debug shows an error's traceback; --help_all lists every flag."
        names = f"other flags of this program:\n{_listed(folded)}\n\nother flags of transformers:\n{_listed(others)}"
        return f"{formatter.format_help()}\n{names}\n\n{end}\n"

    def format_help_of_all(self) -> str:
        """Return the text of ``--help_all``: every flag with its whole description, as argparse formats it."""
        return argparse.ArgumentParser.format_help(self)


def _listed(names: list[str]) -> str:
    text = " ".join(f"--{name}" for name in names)
    return textwrap.fill(text, _WIDTH - 2, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=34, width=_WIDTH)


def _is_negation(action: argparse.Action) -> bool:
    """Whether a flag is the ``--no_...`` that transformers adds to a switch that is on by default."""
    return any(option.startswith("--no_") for option in action.option_strings)


def _short(action: argparse.Action) -> argparse.Action:
    """Return a copy of a flag whose description is shortened to its first sentence and its default.

    Descriptions of this program's own flags are kept whole.
    """
    short = copy.copy(action)
    text = _SAID.get(action.dest) or " ".join((action.help or "").split())
    text = re.split(r"(?<=[.!]) ", text)[0] if action.dest not in _OWN_FLAGS else text
    # The end of the help says once that switches are off by default.
    if "efault" not in text and not action.required and action.default not in (None, False, argparse.SUPPRESS):
        text += f" Default: {getattr(action.default, 'value', action.default)}."
    short.help = text
    # Only the spelling with underscores is shown; each flag has a second one with hyphens.
    short.option_strings = action.option_strings[:1]
    few = action.choices and len(list(action.choices)) <= _FEW
    short.metavar = action.metavar or (None if few else _metavar(action))
    return short


def _metavar(action: argparse.Action) -> str:
    kind = getattr(action.type, "__name__", "")
    return {"int": "N", "float": "X", "string_to_bool": "BOOL"}.get(kind, "VALUE")


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        assert isinstance(parser, Parser)
        print(parser.format_help_of_all(), end="")
        parser.exit()
