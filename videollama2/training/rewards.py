"""Loads rewards for ``--objective grpo``: functions of a record and an answer of the model to its last question."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from videollama2.data.caches.index import content_digest
from videollama2.data.record import Record
from videollama2.errors import ConfigError, DataError, first_line, shown

Reward = Callable[[Record, str], float]
"""A reward; the record's last turn holds the right answer, if there is one."""


def exact_match(record: Record, answer: str) -> float:
    """Return 1 if the answer is the record's last turn, apart from case, outer blanks and a full stop; else 0."""
    return float(_plain(answer) == _plain(record.conversations[-1]["value"]))


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()


def load_reward(name: str) -> Reward:
    """Import the function ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``.

    Raises:
        ConfigError: there is no such module, file or function.
    """
    place, _, function = name.rpartition(":")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found: Any = getattr(module, function)
    except (ImportError, OSError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(f"--reward {name} is not MODULE:FUNCTION or FILE.py:FUNCTION: {error}") from error
    if not callable(found):
        raise ConfigError(f"--reward {name} is not a function, but {type(found).__name__}")
    return cast("Reward", found)


def reward_revision(name: str) -> str:
    """Return the name of a reward and, if it is in a file, a digest of the file: other rewards make another run."""
    path = Path(name.rpartition(":")[0])
    if path.suffix != ".py" or not path.is_file():
        return name
    return f"{name} (sha256:{content_digest(path)[:16]})"


def rewarded(reward: Reward, record: Record, answer: str) -> float:
    """Return the reward of an answer.

    Raises:
        DataError: the function raises an error, or returns no finite number.
    """
    try:
        value = float(reward(record, answer))
    except Exception as error:  # of any kind, since the function is the user's
        told = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{record.name}: --reward fails on the answer {shown(answer)} ({told})") from error
    if not math.isfinite(value):
        raise DataError(
            f"{record.name}: --reward gives {value} to the answer {shown(answer)}, which is not a finite number"
        )
    return value


def _module_of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
