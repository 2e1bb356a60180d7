"""Keeps features that frozen encoders have computed on a disk, so that training neither decodes nor encodes.

A folder belongs to one fingerprint: the weights of the encoders and everything else that all its features depend on.
:data:`MANIFEST` has it, and lists the annotation files whose media are complete. A file is named by the content of the
medium and by what its record says about reading it, and gets its name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from videollama2.data.caches.index import alone, content_digest, file_digest
from videollama2.data.caches.media_cache import remove_if_abandoned
from videollama2.errors import ConfigError, MediaError

MANIFEST = "features.json"
COMMAND = "videollama2 data features"

_TENSOR, _SILENT = "features", "silent"


class FeatureStore:
    """A folder of features; each file holds those of one medium.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    # ----------------------------------------------------------------------------------------- what they are of

    def fingerprint(self) -> dict[str, Any]:
        """Return what all features of the folder depend on.

        Raises:
            ConfigError: there are no features, or the file that describes them is damaged.
        """
        manifest = self._manifest()
        if manifest is None:
            raise ConfigError(f"--features {self.folder}: there are no features; {COMMAND} computes them")
        return manifest["fingerprint"]

    def begin(self, fingerprint: dict[str, Any]) -> None:
        """Prepare the folder for features of this fingerprint, or continue with those in it.

        Raises:
            ConfigError: it holds others, or cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder / "lock"):
                self._remove_abandoned()
                # Whoever comes first describes the folder. The others find the description, and are compared with it
                # below.
                if self._manifest() is None:
                    self._write_manifest({"fingerprint": fingerprint, "files": []})
        except OSError as error:
            raise self.unwritable(error) from error
        self.check(fingerprint)

    def check(self, fingerprint: dict[str, Any]) -> None:
        """Raise a ConfigError that names every difference, unless the folder's features are of this fingerprint."""
        former = self.fingerprint()
        names = [name for name in fingerprint | former if fingerprint.get(name) != former.get(name)]
        if names:
            told = "; ".join(f"{name} {_shown(fingerprint.get(name), former.get(name))}" for name in names)
            raise ConfigError(f"--features {self.folder} holds features of another run: {told}")

    def finish(self, files: Iterable[tuple[str, bool]]) -> None:
        """Note that the features of all media of these annotation files are there; see :meth:`check_files`."""
        with alone(self.folder / "lock"):
            manifest = self._manifest()
            assert manifest is not None  # it was written before the first features
            whole = [entry for entry in map(_entry, files) if entry not in manifest["files"]]
            self._write_manifest({**manifest, "files": [*manifest["files"], *whole]})

    def check_files(self, files: Iterable[tuple[str, bool]]) -> None:
        """Raise a ConfigError unless the features of all media of these annotation files have been computed.

        Args:
            files: annotation files, and whether their videos are heard.
        """
        self.fingerprint()
        whole = (self._manifest() or {})["files"]
        for file, heard in files:
            if _entry((file, heard)) not in whole:
                raise ConfigError(f"--features {self.folder} lacks features of {file}: {COMMAND} computes them")

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from error
        if not isinstance(manifest, dict) or manifest.keys() != {"fingerprint", "files"}:
            raise ConfigError(f"{path}: does not describe features")
        return manifest

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        unfinished = self.folder / f"{MANIFEST}.part"
        unfinished.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.folder / MANIFEST)

    # ------------------------------------------------------------------------------------------------ the files

    def name(self, source: str | bytes, look: Any) -> str:
        """Return the name of a medium's features.

        Args:
            source: path or content of the medium.
            look: a JSON value that says how it is read: its kind, and which part and frames of it.

        Raises:
            MediaError: the file cannot be read.
        """
        # Not by path: the same clip under another name, or in another annotation file, has its features already.
        text = json.dumps([_content(source), look], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def has(self, name: str) -> bool:
        """Whether there are features of this name."""
        return self._path(name).is_file()

    def save(self, name: str, features: torch.Tensor, silent: bool) -> None:
        """Write features; ``silent`` says that they are those of silence in place of a missing sound track.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        path = self._path(name)
        # Two processes may compute the same medium at once. Each writes a file of its own, and the later one replaces
        # the earlier, whose content is the same.
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        content = save({_TENSOR: features.contiguous()}, {_SILENT: "yes"} if silent else None)
        try:
            path.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise self.unwritable(error) from error

    def load(self, source: str | bytes, look: Any) -> tuple[torch.Tensor, bool]:
        """Return a medium's features, and whether they are those of silence; for the arguments see :meth:`name`.

        Raises:
            MediaError: there are none, or their file is damaged.
        """
        path = self._path(self.name(source, look))
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(_TENSOR), _SILENT in (file.metadata() or {})
        except FileNotFoundError as error:
            what = source if isinstance(source, str) else "its media"
            raise MediaError(f"--features {self.folder} lacks features of {what}: {COMMAND} computes them") from error
        except (OSError, SafetensorError) as error:
            raise MediaError(f"{path}: is damaged ({error}); remove it, and {COMMAND} computes it again") from error

    def _remove_abandoned(self) -> None:
        """Remove what killed processes left half written."""
        for path in self.folder.glob("??/*.part"):
            remove_if_abandoned(path)

    def unwritable(self, error: OSError) -> ConfigError:
        """Return the error for a folder that cannot be written to."""
        return ConfigError(f"--features {self.folder}: cannot be written to ({error.strerror})")

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name[2:]}.safetensors"


def _entry(file: tuple[str, bool]) -> list[Any]:
    return [file_digest(file[0]), file[1]]


def _content(source: str | bytes) -> str:
    """Return a digest of a medium's content; that of a folder of pictures depends on their names as well."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        if not os.path.isdir(source):
            return content_digest(source)
        pictures = sorted(path for path in Path(source).iterdir() if path.is_file())
        return json.dumps([(path.name, content_digest(path)) for path in pictures])
    except OSError as error:
        raise MediaError(f"{source}: cannot be opened ({error.strerror})") from error


def _shown(now: Any, before: Any) -> str:
    return "differs" if isinstance(now, dict) or isinstance(before, dict) else f"{now} (was {before})"
