"""Finds the encoders that a checkpoint only names: beside the checkpoint, on the hub, or from built-in values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videollama2.errors import CheckpointNotFoundError
from videollama2.hub import find_file, read_json
from videollama2.model.encoders import known_vision_config


def find_tower(name: str, checkpoint: str | Path | None) -> Path | None:
    """Return the folder of the vision encoder ``name``, as given or beside the checkpoint; None if there is none."""
    return next((place for place in _places(name, checkpoint) if (place / "config.json").is_file()), None)


def _places(name: str, checkpoint: str | Path | None) -> list[Path]:
    """Return an encoder's possible places: as given, and beside the checkpoint (its own folder and the two above)."""
    places = [Path(name)]
    if checkpoint and Path(checkpoint).is_dir():
        folder = Path(checkpoint).resolve()
        places += [parent / name for parent in (folder, folder.parent, folder.parent.parent)]
    return places


def _with_audio_fields(config_dict: dict[str, Any], checkpoint: str | Path | None) -> dict[str, Any]:
    name = config_dict.get("mm_audio_tower")
    if config_dict.get("audio_config") is not None or not name:
        return config_dict
    shapes = (place.with_suffix(".json") for place in _places(name, checkpoint) if place.is_file())
    shape = next((path for path in shapes if path.is_file()), None)
    return config_dict if shape is None else {**config_dict, "audio_config": read_json(shape)}


def complete_flat_dict(config_dict: dict[str, Any], checkpoint: str | Path | None, **hub: Any) -> dict[str, Any]:
    """Add ``vision_config`` to a flat dict from the folder or hub repository that ``mm_vision_tower`` names.

    ``audio_config`` is read from the JSON file beside the file that ``mm_audio_tower`` names, if there is one.

    Args:
        checkpoint: folder or hub name from which the dict came; the encoder's folder may be beside it.
        hub: the options :data:`videollama2.hub.OPTIONS_OF_ANY_REPOSITORY`. ``AutoConfig`` passes none on.

    Raises:
        CheckpointNotFoundError: the encoder is neither a folder nor a repository that can be reached.
    """
    config_dict = _with_audio_fields(config_dict, checkpoint)
    name = config_dict.get("mm_vision_tower")
    if config_dict.get("vision_config") is not None or not name or not isinstance(name, str):
        return config_dict
    folder = find_tower(name, checkpoint)
    if folder is not None:
        vision = read_json(folder / "config.json")
    elif (vision := known_vision_config(name)) is None:
        vision = read_json(_tower_in_repository(name, checkpoint, **hub))
    return {**config_dict, "vision_config": vision}


def _tower_in_repository(name: str, checkpoint: str | Path | None, **hub: Any) -> Path:
    try:
        path = find_file(name, "config.json", **hub)
    except CheckpointNotFoundError as error:
        cause: Exception | None = error
    else:
        if path is not None:
            return path
        cause = None
    raise CheckpointNotFoundError(
        f"mm_vision_tower {name!r} is neither a folder with a config.json (looked in the working folder and "
        f"beside {checkpoint}) nor a hub repository that can be reached"
    ) from cause
