"""Reads recipes, flags of ``train.py`` in a YAML file, and writes the one that each run leaves beside its model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml  # a dependency of transformers and huggingface_hub

from videollama2.errors import ConfigError
from videollama2.training.flags.run import TrainingArguments

RECIPE_FILE = "recipe.yaml"
"""Name of the file in the output folder that ``--recipe`` starts the same run from."""

_FLAG = "--recipe"
_BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """Reads only ``true`` and ``false`` as truth values, as YAML 1.2 does: ``no`` is a value of ``--save_strategy``."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def take_recipe(argv: Sequence[str], known: Collection[str]) -> list[str]:
    """Replace ``--recipe FILE`` by the flags in that file, which those of the command line follow and so override.

    Args:
        argv: the command line.
        known: names of all flags.

    Raises:
        ConfigError: the file cannot be read, is not a mapping of flags to values, or names a flag that does not exist.
    """
    rest, files = [], []
    remaining = iter(argv)
    for argument in remaining:
        name, is_assigned, value = argument.partition("=")
        if name == _FLAG:
            files.append(value if is_assigned else next(remaining, ""))
        else:
            rest.append(argument)
    return [part for file in files for part in _flags_of(file, known)] + rest


def _flags_of(file: str, known: Collection[str]) -> list[str]:
    try:
        recipe = yaml.load(Path(file).read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_FLAG} {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{_FLAG} {file}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"{_FLAG} {file}: must be a mapping of flags to values")
    argv = []
    for key, value in recipe.items():
        name = str(key).replace("-", "_")  # as on the command line
        if name not in known or f"--{name}" == _FLAG:
            raise ConfigError(f"{_FLAG} {file}: there is no flag {key} (--help_all lists all flags)")
        if value is not None:
            # With the sign of equality, a value may begin with dashes.
            argv += [f"--{name}", *map(_text_of, value)] if isinstance(value, list) else [f"--{name}={_text_of(value)}"]
    return argv


def _text_of(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def given_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Return the flags of a command line with their values, as a recipe holds them; the last one of a name counts."""
    given: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in argv:
        if argument.startswith("--"):
            _, is_assigned, value = argument.partition("=")
            values = given[_name_of(argument)] = [value] if is_assigned else []
        else:
            values.append(argument)
    return {name: _value_of(values) for name, values in given.items()}


def without_flags(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """Return a command line without the flags of these names and their values."""
    kept: list[str] = []
    is_kept = True
    for argument in argv:
        if argument.startswith("--"):
            is_kept = _name_of(argument) not in names
        if is_kept:
            kept.append(argument)
    return kept


def _name_of(argument: str) -> str:
    return argument[2:].partition("=")[0].replace("-", "_")


def _value_of(values: list[str]) -> Any:
    found = [_plain(value) for value in values]
    return found if len(found) > 1 else found[0] if found else True


def _plain(text: str) -> Any:
    """Return a number or a truth value if the text is written like one, so that the file is read as it is meant."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) and str(value) == text else text


def save_recipe(folder: Path, training_args: TrainingArguments) -> None:
    """Write the flags that a run was started with, those of a recipe included, to its output folder."""
    source = f"# {_FLAG} {training_args.recipe}, and flags of the command line\n" if training_args.recipe else ""
    text = yaml.safe_dump(training_args.given, sort_keys=False, allow_unicode=True)
    (folder / RECIPE_FILE).write_text(source + text, encoding="utf-8")
