"""What a run was started with: its data, its weights and its flags, written down so that no other run goes on from it.

The record lies in the output folder and in every checkpoint. Data are told by the content of the annotation files,
weights by the content of their files (:mod:`videollama2.checkpoints.fingerprint`), everything else by its flag.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from videollama2.checkpoints.fingerprint import files_revision
from videollama2.errors import ConfigError, DataError
from videollama2.training.connector_file import connector_file
from videollama2.training.flags import DataArguments, ModelArguments, TrainingArguments

RECORD_FILE = "training_run.json"

ANY_VALUE = frozenset(
    {
        # where the result goes and how the run is started again
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "resume_older", "on_bad_sample"),
        # what is told on the way
        *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica"),
        *("log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "debug", "skip_memory_metrics"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "per_device_eval_batch_size"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
        # how often it is saved
        *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "save_only_model"),
        # how records are read
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        # which machine this is
        *("local_rank", "use_cpu", "tf32", "ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb"),
        *("per_device_train_batch_size", "gradient_accumulation_steps"),  # their product counts: see batch
    }
)
"""Flags that change neither what is learnt nor in which order, so a run may go on with other values of them."""

_BY_CONTENT = ("data_path", "eval_data_path", "model_path", "vision_tower", "pretrain_mm_mlp_adapter")
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class RunIdentity:
    """What makes two runs the same one.

    Attributes:
        data: per flag, ``[file, digest]`` of each annotation file in order.
        weights: per flag, ``[name, revision]``.
        flags: value per flag, as JSON has it; without those of :data:`ANY_VALUE`.
        batch: samples of a step: over all processes and accumulation steps.
        split: how a batch is split, which may differ.
    """

    data: dict[str, list[list[str]]]
    weights: dict[str, list[str]]
    flags: dict[str, Any]
    batch: int
    split: dict[str, int]

    @classmethod
    def of(cls, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> RunIdentity:
        """The identity that a command line has; reads annotation files whole and samples of large weight files.

        Raises:
            DataError: an annotation file that cannot be read. CheckpointNotFoundError: weights that are not there.
        """
        data = {
            "data_path": [[file, file_digest(file)] for file in data_args.data_path],
            "eval_data_path": [[file, file_digest(file)] for file in data_args.eval_data_path or ()],
        }
        names = {"model_path": model_args.model_path, "vision_tower": model_args.vision_tower}
        if model_args.pretrain_mm_mlp_adapter:
            names["pretrain_mm_mlp_adapter"] = str(connector_file(model_args.pretrain_mm_mlp_adapter))
        weights = {flag: [name, files_revision(name)] for flag, name in names.items() if name}
        split = {name: getattr(training_args, name) for name in _BATCH} | {"processes": training_args.world_size}
        batch = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
        flags = dict(_flags((model_args, data_args, training_args)))
        return cls(data, weights, flags, batch, split)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RunIdentity:
        """Read back what :meth:`to_json` wrote."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """As plain values, equal to what comes back from a file."""
        return json.loads(json.dumps(asdict(self)))

    def differences(self, former: RunIdentity) -> list[str]:
        """What this run has otherwise than ``former``, each as a user would look for it; empty for the same run."""
        found = [*_content_differences(self.data, former.data), *_content_differences(self.weights, former.weights)]
        defaults = _defaults()
        for name in sorted(self.flags.keys() | former.flags.keys()):
            now, before = (flags.get(name, defaults.get(name)) for flags in (self.flags, former.flags))
            if now != before:
                found.append(f"--{name} {_shown(now)} (was {_shown(before)})")
        if self.batch != former.batch:
            changed = [name for name in self.split if self.split[name] != former.split.get(name)]
            found += [f"{_named(name)} {self.split[name]} (was {former.split.get(name)})" for name in changed]
        return found

    def check(self, former: RunIdentity, folder: Path) -> None:
        """Raise ConfigError, naming everything that differs, unless ``former`` is the same run."""
        if different := self.differences(former):
            raise ConfigError(
                f"{folder} holds a run that was started otherwise: {'; '.join(different)}. Give the same flags and "
                "data, another --output_dir, or --overwrite_output_dir True to begin anew"
            )


def file_digest(file: str) -> str:
    """SHA-256 of a file's content.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(file).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{file}: cannot be read as an annotation file ({error})") from error
    return digest.hexdigest()


def _content_differences(now: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    """Files are compared by content alone: moving them makes no other run."""
    for flag in sorted(now.keys() | before.keys()):
        new, old = (_pairs(side.get(flag, [])) for side in (now, before))
        if [digest for _, digest in new] == [digest for _, digest in old]:
            continue
        names, former_names = ([name for name, _ in side] for side in (new, old))
        if names == former_names:
            changed = [name for (name, digest), (_, former) in zip(new, old, strict=True) if digest != former]
            yield f"--{flag} {' '.join(changed)} (has other content now)"
        else:
            yield f"--{flag} {' '.join(names) or 'not given'} (was {' '.join(former_names) or 'not given'})"


def _pairs(entry: Sequence[Any]) -> list[list[str]]:
    return [list(entry)] if entry and isinstance(entry[0], str) else [list(pair) for pair in entry]


def _flags(arguments: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for group in arguments:
        for field in fields(group):
            if not field.init or field.name in ANY_VALUE or field.name in _BY_CONTENT:
                continue
            value = getattr(group, field.name)
            if field.name == "deepspeed" and isinstance(value, str) and Path(value).is_file():
                value = json.loads(Path(value).read_text(encoding="utf-8"))
            if field.name == "data_folder" and value is not None:
                value = str(Path(value).resolve())
            yield field.name, _plain(value)


def _defaults() -> dict[str, Any]:
    """What a flag that an older record does not know stood for then."""
    groups = (ModelArguments, DataArguments, TrainingArguments)
    return {f.name: _plain(f.default) for group in groups for f in fields(group) if f.default is not MISSING}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "with other content"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not given" if value is None else str(value)


def _named(name: str) -> str:
    return name if name == "processes" else f"--{name}"
