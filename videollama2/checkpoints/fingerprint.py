"""Which weights are these: a commit of the hub, or a digest of the files of a folder.

Evaluation keeps answers per model and training keeps a run apart from every other one; both must notice that a folder
of the same name holds other weights.
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
    """A hub commit, or a digest of the files of a folder; of everything that a LoRA or connector folder builds on as
    well, whether it is given or named by the folder itself.

    Files above 64 MiB are told by their size and 64 samples spread over them: 150 GB are not read to name a model.

    Raises:
        CheckpointError: no such model, or it cannot be told what it builds on.
    """
    path = resolve_name(model_path)
    kind = checkpoint_kind(path)
    used = [path, *([model_base] if kind == "full" else _built_on(path, model_base))]
    return "+".join(files_revision(name) for name in used if name)


def _built_on(path: str, model_base: str | None) -> list[str | None]:
    """Base and vision tower, found as loading finds them; a whole base brings its own tower."""
    fields = read_config(path) if find_file(path, "config.json") else {}
    base = base_of(path, model_base)
    if not base:
        return []  # loading says what is missing
    tower = None if is_videollama2(read_config(base)) else fields.get("mm_vision_tower")
    return [base, tower]


def files_revision(name: str) -> str:
    """The hub commit of a repository, or a digest of the content of a folder's weights and settings, or of one file.

    Args:
        name: of any model, also one that is no VideoLLaMA 2 (a language model, an encoder), or the path of a file.

    Raises:
        CheckpointNotFoundError: there is nothing of that name.
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
