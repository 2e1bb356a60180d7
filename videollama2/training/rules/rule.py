"""Defines what a rule between flags is, and the one that many flags share: they have no effect without another."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.run import TrainingArguments

Rule = tuple[Any, str]
"""Whether a rule is broken, and the error message for that case."""


def no_effect_without(
    arguments: TrainingArguments | DataArguments, flag: str, given: bool, names: tuple[str, ...]
) -> list[Rule]:
    """Return rules that ``names`` must keep their defaults without ``flag``, since they would have no effect."""
    defaults = {f.name: default_of(f) for f in fields(arguments)}
    return [
        (
            not given and getattr(arguments, name) != defaults[name],
            f"--{name} {getattr(arguments, name)} has no effect without --{flag}",
        )
        for name in names
    ]


def default_of(flag: Field[Any]) -> Any:
    """Return the default of a flag; ``MISSING`` if it must be given."""
    return flag.default if flag.default_factory is MISSING else flag.default_factory()
