"""Prepares the training data of a run as the flags ask for them: read at once or streamed, plain or packed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from videollama2.data.caches.features import FeatureStore
from videollama2.data.caches.index import Index
from videollama2.data.caches.media_cache import FrameCache
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.order.mixture import Mixture, parse_phases
from videollama2.data.packing import PackedRows
from videollama2.data.record import Record
from videollama2.data.records import PackedRecords, no_records, read_sets
from videollama2.data.samples import TrainingSample
from videollama2.data.stream import RecordFiles, StreamedRecords, StreamOrder
from videollama2.errors import DataError
from videollama2.processing import VideoLlama2Processor
from videollama2.training.asking.rollouts import PromptDataset
from videollama2.training.asking.sample_questions import SampleQuestions
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.joint import Joint, joint_of

Trained = VideoInstructionDataset | PackedRows | StreamedRecords

_COMPARED = 100
"""Number of problems of records that processes compare one by one."""


@dataclass(frozen=True)
class Outline:
    """A summary that shows whether two processes have read the same records from annotation files of the same content.

    Attributes:
        left_out: number of records that were left out, and a checksum of their problems.
        problems: up to a hundred of these problems.
        media: each annotation file, with a checksum of the kinds and numbers of frames of its records' media.
    """

    left_out: tuple[int, int]
    problems: list[str]
    media: list[tuple[str, int]]


class RunData:
    """The records of a run. They are read and checked when this is made, before gigabytes of weights are.

    Attributes:
        skipped: problems of records that were left out; None if the first problem is an error.
    """

    def __init__(self, data_args: DataArguments, training_args: TrainingArguments) -> None:
        self.data_args, self.training_args = data_args, training_args
        self.skipped: list[str] | None = [] if data_args.on_bad_sample == "skip" else None
        self.index = Index(Path(data_args.records_cache)) if data_args.records_cache else None
        self.media_cache = None
        if data_args.media_cache:
            limit = int(data_args.media_cache_gb * 1e9)
            self.media_cache = FrameCache(data_args.media_cache, limit, training_args.local_process_index == 0)
        self.features = None
        if data_args.features:
            self.features = FeatureStore(data_args.features)
            self.features.check_files(data_args.files_heard)
        read = partial(
            read_sets,
            data_folder=data_args.data_folder,
            skipped=self.skipped,
            progress=self.first,
            index=self.index,
            sampling=data_args.frame_sampling,
        )
        self.stream = RecordFiles(data_args.files, data_args.data_folder, data_args.heard)
        self.sets: list[PackedRecords] = []
        if data_args.streaming:
            empty = self.stream.empty(None if self.skipped is None else self.skipped.append)
        else:
            self.sets = read(data_args.files, va=data_args.heard)
            empty = _empty(self.sets)
        self.eval_sets = read(data_args.eval_data_path or [], va=[any(data_args.heard)])
        self._pass_over(empty, _empty(self.eval_sets))

    @property
    def first(self) -> bool:
        """Whether this process shows progress for its machine."""
        return self.training_args.local_process_index == 0

    def _pass_over(self, empty: Sequence[str], empty_of_evaluation: Sequence[str]) -> None:
        """Tell of the files without a record, unless there is no other, or such a file has a share of the batches."""
        args = self.data_args
        if len(empty) == len(args.files):
            raise no_records(args.files)
        if empty and (args.data_weights or args.data_curriculum):
            flag = "--data_weights" if args.data_weights else "--data_curriculum"
            raise DataError(f"{empty[0]}: there is no record in this file, but {flag} gives it a share of the batches")
        for file in (*empty, *empty_of_evaluation):
            if self.training_args.process_index == 0:
                print(f"warning: {file}: there is no record in this file, so it is skipped", file=sys.stderr)

    @property
    def seed(self) -> int:
        """The seed of the order of samples."""
        args = self.training_args
        return args.seed if args.data_seed is None else args.data_seed

    @property
    def outline(self) -> Outline:
        """What the records are, in short; of a stream, as far as it has been read."""
        skipped = self.skipped or []
        left_out = len(skipped), crc32("\n".join(skipped).encode("utf-8", "surrogatepass"))
        media = []
        for records in (*self.sets, *self.eval_sets):
            shapes, shape_of = records.shapes
            found = crc32(np.asarray(shape_of, np.int64).tobytes(), crc32(repr(shapes).encode()))
            media.append((records.source, found))
        return Outline(left_out, skipped[:_COMPARED], media)

    @property
    def joint(self) -> Joint | None:
        """The groups of joint training, see :func:`videollama2.training.joint.joint_of`."""
        return None if self.data_args.streaming else joint_of(self.sets, self.data_args, self.training_args)

    def trained(
        self, processor: VideoLlama2Processor, stage: str, kind: type[VideoInstructionDataset] = VideoInstructionDataset
    ) -> tuple[Trained, Mixture | None]:
        """Return what the loader reads, with the mixture of its sets; a stream has none.

        Args:
            kind: the dataset of the run's objective.
        """
        if self.data_args.streaming:
            order = StreamOrder(self.stream, self.data_args.data_weights, self.data_args.shuffle_buffer, self.seed)
            return StreamedRecords(order, **self.reading(processor, stage)), None
        dataset, sizes = self._dataset(self.sets, processor, stage, kind), [len(records) for records in self.sets]
        trained, mixture = self._packed(dataset, sizes)
        if self.training_args.should_log:
            for line in mixture.told([Path(file).name for file in self.data_args.files]):
                print(line, flush=True)
        return trained, mixture

    def evaluated(self, processor: VideoLlama2Processor, stage: str) -> Sequence[TrainingSample] | None:
        """Return the records that the loss is measured on; None without an evaluation, none if it asks benchmarks."""
        if self.eval_sets:
            return cast("Sequence[TrainingSample]", self._dataset(self.eval_sets, processor, stage))
        return [] if self.training_args.eval_benchmarks else None

    def questions(self, processor: VideoLlama2Processor, stage: str, most: int) -> SampleQuestions | None:
        """Return ``most`` records with questions, evenly spread over those of the evaluation or else of the training.

        None if there are none, or if the stage learns captions without questions.
        """
        sets = self.eval_sets or self.sets
        if not (most and sets) or stage != "finetune":
            return None
        # Samples are only shown, so none of them stops a run: a bad record does when the run comes to it.
        reading = {**self.reading(processor, stage), "levels": False, "features": None, "skip_bad": True}
        return SampleQuestions(PromptDataset(_joined(sets), **reading), most)

    def reading(self, processor: VideoLlama2Processor, stage: str) -> dict[str, Any]:
        """Return the arguments of a :class:`~videollama2.data.samples.SampleReader` of this run."""
        return {
            "processor": processor,
            "max_length": self.training_args.model_max_length,
            "stage": stage,
            "skip_bad": self.skipped is not None,
            "levels": processor.transform is not None,
            "sampling": self.data_args.frame_sampling,
            "media_cache": self.media_cache,
            "features": self.features,
        }

    def _dataset(
        self,
        sets: list[PackedRecords],
        processor: VideoLlama2Processor,
        stage: str,
        kind: type[VideoInstructionDataset] = VideoInstructionDataset,
    ) -> VideoInstructionDataset:
        contents = [each.content for each in sets]
        reading = self.reading(processor, stage)
        # The inference engine, which answers questions in training, takes pixels.
        reading["levels"] = reading["levels"] and kind is not PromptDataset
        return kind(_joined(sets), **reading, index=self.index, contents=contents, progress=self.first)

    def _packed(
        self, dataset: VideoInstructionDataset, sizes: list[int]
    ) -> tuple[VideoInstructionDataset | PackedRows, Mixture]:
        weights, packing = self.data_args.data_weights, self.data_args.packing
        mixture = Mixture(sizes, weights, parse_phases(self.data_args.data_curriculum or (), len(sizes)))
        if packing is None:
            by_tokens = self.data_args.data_weights_by == "tokens"
            return dataset, mixture.of_tokens(dataset.lengths) if by_tokens else mixture
        # Without weights all records are packed together, so that fewer rows are left half empty.
        apart = sizes if weights or mixture.phases else [len(dataset)]
        rows = PackedRows(dataset, apart, packing, self.seed, progress=self.first)
        if self.training_args.should_log:
            print(
                f"packed {len(dataset)} records into {len(rows)} rows of {packing} tokens, which are {rows.fill:.0%} "
                "full"
            )
        return rows, replace(mixture, sizes=rows.sizes)


def _joined(sets: list[PackedRecords]) -> Sequence[Record]:
    # Sequences can be concatenated, and the result behaves like one, although torch annotates neither.
    return cast("Sequence[Record]", ConcatDataset(cast("list[Dataset[Record]]", sets)))


def _empty(sets: Sequence[PackedRecords]) -> list[str]:
    return [records.source for records in sets if not records]
