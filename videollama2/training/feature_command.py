"""Runs ``videollama2 data features``: computes and keeps what frozen encoders make of all media of a run.

    videollama2 data features --features DIR [flags of the training]

The flags are those of ``python -m videollama2.train``, which is then called with the same ones. Started by torchrun,
each process computes a part. What is in the folder already is not computed again, so an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from videollama2.commands import hides_bar
from videollama2.data.caches.features import FeatureStore
from videollama2.data.check import add_check_command
from videollama2.data.formats.contents import source_of
from videollama2.data.record import Record, RecordMedium
from videollama2.data.samples import SampleReader
from videollama2.errors import ConfigError, DataError, MediaError
from videollama2.media.kinds import AUDIO, IMAGE
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import media_tokens
from videollama2.training.arguments import Arguments, parse_arguments
from videollama2.training.data import RunData
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.model.build import open_model
from videollama2.training.model.frozen_features import dtype_of, fingerprint, precision_of

MediumPart = tuple[RecordMedium, str]
"""A medium of a record, and the kind of what the model receives of it: a video that is heard has two parts."""


def compute_features(arguments: Arguments) -> None:
    """Compute the features of all media of a run's records, those of the evaluation included, and say what they cost.

    Args:
        arguments: flags of the run, of which ``--deepspeed`` and ``--fully_shard`` were ignored; this changes them.

    Raises:
        ConfigError: ``--features`` is not given, holds other features, cannot be written to or has too little room.
        DataError: a medium cannot be read; with ``--on_bad_sample skip`` it is told and left out.
    """
    model_args, data_args, training_args = arguments
    if not data_args.features:
        raise ConfigError("--features DIR is needed: the folder that the features are written to")
    store = FeatureStore(data_args.features)
    # Here pixels are read, of all records; of the decoder and the connectors nothing is needed.
    data_args.features, data_args.streaming = None, False
    model_args.pretrain_mm_mlp_adapter = model_args.pretrain_mm_mlp_adapter_a = None
    training_args.bits = 16
    data = RunData(data_args, training_args)
    model, processor = open_model(model_args, data_args, training_args, decodes=False)
    precision = precision_of(training_args, bool(training_args.given.get("deepspeed")))
    store.begin(fingerprint(model, processor, data_args, precision))
    reader = SampleReader(**data.reading(processor, "finetune"))
    parts = _first_records([*data.sets, *data.eval_sets])
    size = Sizes(reader, precision)
    _check_room(store, sum(map(size, parts)), data.first)
    costs = _encode(_Encoder(model, precision, training_args.device), reader, store, parts, training_args)
    PartialState().wait_for_everyone()
    if training_args.process_index == 0:
        store.finish(data_args.files_heard)
        epoch = sum(size(part) for records in data.sets for record in records for part in _parts(record))
        print(costs.told(len(parts), epoch))


@dataclass
class FeatureCosts:
    """The work of this process: number of media, bytes of their features, seconds of decoding and of encoding."""

    media: int = 0
    bytes: int = 0
    decoding: float = 0.0
    encoding: float = 0.0

    def told(self, media: int, epoch: int) -> str:
        """Return what was done and what an epoch saves, in words.

        Args:
            media: number of different media.
            epoch: bytes of features that an epoch reads.
        """
        lines = [f"{media} media have features; this process computed {self.media} of them now ({_size(self.bytes)})"]
        if self.bytes:
            decoding, encoding = (seconds * epoch / self.bytes for seconds in (self.decoding, self.encoding))
            lines.append(
                f"an epoch reads {_size(epoch)} of features and saves {decoding:.4g} s of decoding in one "
                f"process and {encoding:.4g} s of encoding"
            )
        return "\n".join(lines)


class Sizes:
    """The number of bytes of the features of parts, by their shapes alone."""

    def __init__(self, reader: SampleReader, precision: str) -> None:
        self.reader, self.of_number = reader, dtype_of(precision).itemsize

    def __call__(self, part: MediumPart) -> int:
        """Return the number of bytes of a part's features."""
        (medium, kind), config = part, self.reader.processor.model_config
        if kind == AUDIO:
            return media_tokens(config, AUDIO) * config.mm_hidden_size_a * self.of_number
        frames = 1 if kind == IMAGE else self.reader.frames(medium)
        return frames * config.features_per_frame * config.mm_hidden_size * self.of_number


def _parts(record: Record) -> Iterator[MediumPart]:
    return ((medium, kind) for medium in record.media for kind in medium.parts)


def _first_records(sets: Sequence[Sequence[Record]]) -> dict[MediumPart, str]:
    """Return the different parts of all media, each with the name of the first record that has it."""
    found: dict[MediumPart, str] = {}
    for records in sets:
        for record in records:
            for part in _parts(record):
                found.setdefault(part, record.name)
    return found


def _check_room(store: FeatureStore, size: int, tells: bool) -> None:
    if tells:
        print(f"the features take up to {_size(size)} in {store.folder}", flush=True)
    needed = size - sum(path.stat().st_size for path in store.folder.glob("??/*.safetensors"))
    if needed > (free := shutil.disk_usage(store.folder).free):
        raise ConfigError(f"--features {store.folder} has {_size(free)} of free space, but {_size(needed)} are needed")


class _Encoder:
    """Computes features as the frozen encoders of a run do."""

    def __init__(self, model: VideoLlama2ForConditionalGeneration, precision: str, device: torch.device) -> None:
        self.inner, self.precision, self.device = model.model, precision, device
        self.dtype = dtype_of(precision)
        for tower in (self.inner.vision_tower, self.inner.audio_tower):
            if tower is not None:
                nn.Module.to(tower, device, self.dtype).eval()

    @torch.no_grad()
    def __call__(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        """Return features (T, patches, D) of pixels (T, C, H, W), or (1, N, D) of a filter bank (1, T, F)."""
        encode = self.inner.encode_audio if kind == AUDIO else self.inner.encode_vision
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "mixed bfloat16"):
            features = encode(values)
        return features.to("cpu", self.dtype)


class _Media(Dataset):
    """The encoders' inputs for each part whose features are not there yet."""

    def __init__(self, reader: SampleReader, store: FeatureStore, parts: Sequence[MediumPart]) -> None:
        self.reader, self.store, self.parts = reader, store, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the ``name`` of a part's features with ``values``, ``silent`` and ``seconds``; or its ``problem``."""
        medium, kind = self.parts[index]
        begin = time.perf_counter()
        try:
            name = self.store.name(source_of(medium.path), self.reader.look(medium, kind))
            if self.store.has(name):
                return {"name": name}
            values, silent = self.reader.read_part(medium, kind)
        except (DataError, MediaError) as error:
            return {"problem": str(error)}
        return {"name": name, "values": values, "silent": silent, "seconds": time.perf_counter() - begin}


def _encode(
    encode: _Encoder,
    reader: SampleReader,
    store: FeatureStore,
    parts: dict[MediumPart, str],
    training_args: TrainingArguments,
) -> FeatureCosts:
    """Compute and write this process's share of the features."""
    own = list(parts)[training_args.process_index :: training_args.world_size]
    media = _Media(reader, store, own)
    loader = DataLoader(media, batch_size=None, num_workers=training_args.dataloader_num_workers, collate_fn=_unchanged)
    costs, hidden = FeatureCosts(), hides_bar(training_args.local_process_index == 0)
    for part, found in zip(own, tqdm(loader, desc="encoding", unit=" media", disable=hidden), strict=True):
        if problem := found.get("problem"):
            if not reader.skip_bad:
                raise DataError(f"{parts[part]}: {problem}")
            tqdm.write(f"left out: {parts[part]}: {problem}", file=sys.stderr)
        elif "values" in found and not store.has(found["name"]):  # two files may have the same content
            begin = time.perf_counter()
            features = encode(part[1], found["values"])
            costs.encoding += time.perf_counter() - begin
            costs.decoding += found["seconds"]
            costs.media += 1
            costs.bytes += features.nbytes
            store.save(found["name"], features, found["silent"])
    return costs


def _size(count: int) -> str:
    return f"{count / 1e9:.4g} GB" if count >= 1e9 else f"{count / 1e6:.4g} MB"


def _unchanged(sample: Any) -> Any:
    return sample


def add_data_commands(subparsers: Any) -> None:
    """Add ``data check`` and ``data features`` to the command line."""
    parser = subparsers.add_parser("data", help="annotation files for training")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    add_check_command(commands)
    # The flags are read by the parser of train.py; no character begins one here.
    features = commands.add_parser(
        "features",
        prefix_chars="\0",
        add_help=False,
        help="compute the features of frozen encoders once, for many runs",
    )
    features.add_argument("flags", nargs="*", metavar="FLAG OF THE TRAINING")
    features.set_defaults(run=_features, debug=False)


def _features(args: argparse.Namespace) -> int:
    # Encoders are not shared among processes, and one process may compute what many will train on.
    compute_features(parse_arguments(args.flags, ignored=("deepspeed", "fully_shard")))
    return 0
