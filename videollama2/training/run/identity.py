"""Tells whether two runs are the same one, by the data, weights and flags that they were started with.

This identity is recorded in the output folder and in every checkpoint, so that a run with another one does not continue
them. Data are identified by the content of the annotation files, weights by the content of their files
(:mod:`videollama2.checkpoints.fingerprint`), and everything else by the values of flags.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Any

from videollama2.checkpoints.fingerprint import files_revision
from videollama2.data.caches.features import FeatureStore
from videollama2.data.caches.index import file_digest
from videollama2.errors import ConfigError, some_of
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.model.weights_file import weights_file
from videollama2.training.rewards import reward_revision
from videollama2.training.rules.rule import default_of

ANY_VALUE = frozenset(
    {
        # where the result goes and how the run is started again
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "resume_older", "on_bad_sample"),
        "recipe",  # its flags count
        # what is logged and published
        *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica"),
        *("log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "debug", "skip_memory_metrics"),
        "sample_answers",
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "per_device_eval_batch_size"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
        # how often the run is saved
        *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "save_only_model"),
        # how records are read
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "records_cache"),
        *("media_cache", "media_cache_gb"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        # on which machine the run is
        *("local_rank", "use_cpu", "tf32", "ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb"),
        *("per_device_train_batch_size", "gradient_accumulation_steps"),  # only their product counts
    }
)
"""Flags that change neither what is learnt nor in which order, so a run may be continued with other values of them."""

_FILES_OF_WEIGHTS = ("pretrain_mm_mlp_adapter", "pretrain_mm_mlp_adapter_a", "audio_tower")
_BY_CONTENT = ("data_path", "data_path_a", "eval_data_path", "model_path", "vision_tower", *_FILES_OF_WEIGHTS)
_SHOWN_FILES = 3
"""Number of files of a flag that a message names."""
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class RunIdentity:
    """The values that decide whether two runs are the same one.

    Attributes:
        data: for each flag, the ``[file, digest]`` pairs of its annotation files in order.
        weights: for each flag, its ``[name, revision]`` pair.
        flags: the JSON value of each flag except those of :data:`ANY_VALUE`.
        batch: number of samples in a step, over all processes and accumulation steps.
        split: how a batch is split over processes and accumulation steps; two runs may differ in this.
    """

    data: dict[str, list[list[str]]]
    weights: dict[str, list[str]]
    flags: dict[str, Any]
    batch: int
    split: dict[str, int]

    @classmethod
    def of(cls, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> RunIdentity:
        """Return the identity of a command line; this reads whole annotation files and samples of large weight files.

        Raises:
            DataError: an annotation file cannot be read.
            CheckpointNotFoundError: weights do not exist.
        """
        data = {
            flag: [[file, file_digest(file)] for file in getattr(data_args, flag) or ()]
            for flag in ("data_path", "data_path_a", "eval_data_path")
        }
        # By the revision of their files, of which large ones are only sampled: reading all of a model would take
        # minutes at every start.
        names = {"model_path": model_args.model_path, "vision_tower": model_args.vision_tower}
        for flag in _FILES_OF_WEIGHTS:
            if name := getattr(model_args, flag):
                names[flag] = str(weights_file(flag, name))
        weights = {flag: [name, files_revision(name)] for flag, name in names.items() if name}
        split = {name: getattr(training_args, name) for name in _BATCH} | {"processes": training_args.world_size}
        batch = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
        flags = dict(_flags((model_args, data_args, training_args)))
        return cls(data, weights, flags, batch, split)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RunIdentity:
        """Build an identity from the value of :meth:`to_json`."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Return the identity as plain JSON values, equal to those read back from a file."""
        return json.loads(json.dumps(asdict(self)))

    def differences(self, former: RunIdentity, was: str = "was", free: Collection[str] = ()) -> list[str]:
        """Describe each difference from ``former`` by its flag; the list is empty if it is the same run.

        Args:
            was: what stands before the values of ``former``.
            free: further flags that may differ.
        """
        sides = (self.data, former.data), (self.weights, former.weights)
        found = [told for now, before in sides for told in _content_differences(now, before, was)]
        defaults = _defaults()
        for name in sorted(self.flags.keys() | former.flags.keys()):
            # A record of an older version lacks newer flags: such a run had what is their default now.
            now, before = (flags.get(name, defaults.get(name)) for flags in (self.flags, former.flags))
            if now != before and name not in free:
                found.append(f"--{name} {_shown(now)} ({was} {_shown(before)})")
        # Only the size of a step counts. How it is split is shown merely to say which flag has changed it.
        if self.batch != former.batch:
            found += self.split_changes(former, was)
        return found

    def split_changes(self, former: RunIdentity, was: str = "was") -> list[str]:
        """Describe each number by which a batch is split otherwise than in ``former``."""
        changed = [name for name in self.split if self.split[name] != former.split.get(name)]
        return [f"{_named(name)} {self.split[name]} ({was} {former.split.get(name)})" for name in changed]

    def check(self, former: RunIdentity, folder: Path) -> None:
        """Raise a ConfigError that names every difference, unless ``former`` is the same run."""
        if different := self.differences(former):
            raise ConfigError(
                f"{folder} holds a run with other flags or data: {'; '.join(different)}. Give the same flags and "
                "data, another --output_dir, or --overwrite_output_dir True to start over"
            )


def _content_differences(now: dict[str, Any], before: dict[str, Any], was: str) -> Iterator[str]:
    """Yield the flags whose files differ, with these files; they are compared by content alone and may be moved."""
    for flag in sorted(now.keys() | before.keys()):
        both = zip_longest(*(_pairs(side.get(flag, [])) for side in (now, before)), fillvalue=(None, None))
        differing = [(name, former) for (name, digest), (former, its) in both if digest != its]
        if not differing:
            continue
        names, former_names = ([name for name in side if name] for side in zip(*differing, strict=True))
        told = "has other content" if names == former_names else f"{was} {_few(former_names)}"
        yield f"--{flag} {_few(names)} ({told})"


def _few(names: list[str]) -> str:
    """Return the first names of files; of shards there may be thousands."""
    return some_of(names, _SHOWN_FILES, " ") or "not given"


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
            if field.name == "reward" and value is not None:
                value = reward_revision(value)
            if field.name == "features" and value is not None:
                value = FeatureStore(value).fingerprint()
            yield field.name, _plain(value)


def _defaults() -> dict[str, Any]:
    """Return the default of each flag: the value that applied to a flag that an older record does not have."""
    groups = (ModelArguments, DataArguments, TrainingArguments)
    defaults = {flag.name: default_of(flag) for group in groups for flag in fields(group)}
    return {name: _plain(value) for name, value in defaults.items() if value is not MISSING}


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
