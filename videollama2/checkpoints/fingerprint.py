"""Identifies the weights of a model by its hub commit or by a digest of the files in its folder.

Evaluation stores answers per model, and a training run may only be resumed with the weights it started from; both must
notice when a folder of the same name holds other weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from videollama2.checkpoints.files import ADAPTER_CONFIG, base_of, checkpoint_kind, resolve_name
from videollama2.config import is_videollama2
from videollama2.hub import find_file, read_config

_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".jinja", ".txt"}
_WHOLE = 64 << 20
_SAMPLES, _SAMPLE = 64, 1 << 16


def model_revision(model_path: str, model_base: str | None = None) -> str:
    """Return a hub commit or a digest of the files in a folder.

    For a LoRA or connector folder it also covers the base model and vision tower, whether they are given here or named
    by the folder itself. A file above 64 MiB is represented by its size and 64 samples spread over it, because reading
    150 GB to identify a model would take too long.

    Raises:
        CheckpointError: there is no such model, or its base model is unknown.
    """
    path = resolve_name(model_path)
    kind = checkpoint_kind(path)
    used = [path, *([model_base] if kind == "full" else _built_on(path, model_base))]
    return "+".join(files_revision(name) for name in used if name)


def _built_on(path: str, model_base: str | None) -> list[str | None]:
    """Return the base and vision tower that loading would use; a full base model includes its own tower."""
    fields = read_config(path) if find_file(path, "config.json") else {}
    base = base_of(path, model_base)
    if not base:
        return []  # loading reports what is missing
    tower = None if is_videollama2(read_config(base)) else fields.get("mm_vision_tower")
    return [base, tower]


def files_revision(name: str) -> str:
    """Return the hub commit of a repository, or a digest of one file or of a folder's weights and settings.

    Args:
        name: folder or hub name of any model, including plain language models and encoders, or the path of a file.

    Raises:
        CheckpointNotFoundError: nothing of that name exists.
    """
    path = resolve_name(name)
    if Path(path).is_file():
        return _digest([Path(path)])
    if not Path(path).is_dir():
        config = find_file(path, "config.json") or find_file(path, ADAPTER_CONFIG)
        if config is not None:
            return config.parent.name  # snapshots/COMMIT/config.json
    return _digest(file for file in sorted(Path(path).glob("*")) if file.suffix in _SUFFIXES and file.is_file())


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        _add(digest, file)
    return f"sha256:{digest.hexdigest()[:16]}"


def _add(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return
        for index in range(_SAMPLES):
            file.seek(index * (size - _SAMPLE) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
