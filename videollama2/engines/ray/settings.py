"""Reads the settings of the application on Ray: the flags of ``videollama2 serve``, by name or on a command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from videollama2.constants import DEFAULT_MODEL_NAME
from videollama2.errors import ConfigError
from videollama2.serve.part_flags import add_replica_flags
from videollama2.serve.settings import add_media_flags, add_security_flags
from videollama2.serve.worker.flags import add_worker_flags, model_name_of

_YES, _NO = ("true", "1", "yes"), ("false", "0", "no", "")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions, because there may be no terminal."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def add_application_flags(parser: argparse.ArgumentParser, is_several: bool) -> None:
    """Add the flags of the application. Address and port belong to Serve itself.

    Args:
        is_several: whether ``--model-path`` may be repeated.
    """
    add_worker_flags(parser, is_several)
    add_replica_flags(parser)
    add_security_flags(parser, worker_flags=False)
    add_media_flags(parser)


def read_models(given: Mapping[str, Any]) -> list[argparse.Namespace]:
    """Return the flags of each model.

    Args:
        given: see :func:`videollama2.engines.ray.app`.

    Raises:
        ConfigError: there is no such flag, a value is invalid, or two models have the same name.
    """
    shared = {name: value for name, value in given.items() if name != "models"}
    models = given.get("models", [{}])
    if not isinstance(models, Sequence) or not models or not all(isinstance(model, Mapping) for model in models):
        raise ConfigError(f"models: expected a list of mappings, got {models!r}")
    return named([_read({**shared, **model}) for model in models])


def named(models: list[argparse.Namespace]) -> list[argparse.Namespace]:
    """Set ``model_name`` where it is not set.

    Raises:
        ConfigError: two models have the same name.
    """
    for model in models:
        model.model_name = getattr(model, "model_name", None) or model_name_of(model.model_path)
    names = [model.model_name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models have one name: {', '.join(names)}; set model_name")
    return models


def _read(given: Mapping[str, Any]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_application_flags(parser, is_several=False)
    switches = {action.dest for action in parser._actions if action.nargs == 0}
    arguments = list(_command_line({"model_path": DEFAULT_MODEL_NAME, **given}, switches))
    return parser.parse_args(arguments)


def _command_line(given: Mapping[str, Any], switches: set[str]) -> Iterator[str]:
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if name in switches:
            if _is_on(name, value):
                yield flag
            continue
        if isinstance(value, Mapping):  # engine_option: {quantization: fp8}
            value = [f"{key}={each}" for key, each in value.items()]
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                yield f"{flag}={each}"


def _is_on(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in (*_YES, *_NO):
        raise ConfigError(f"{name}: expected true or false, got {value!r}")
    return text in _YES
