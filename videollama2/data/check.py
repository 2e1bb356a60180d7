"""Runs ``videollama2 data check``, which reports all problems in annotation files, and the lengths of their records.

    videollama2 data check train.json --data-folder /data/videos --model-path DAMO-NLP-SG/VideoLLaMA2.1-7B-16F

Every file that a record names is opened. ``--decode`` also decodes its first and last frame and its sound; ``--quick``
opens none.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from videollama2.commands import add_debug_flag
from videollama2.constants import MAX_FRAMES, TINY_MODEL_NAME
from videollama2.data.record import Record
from videollama2.data.records import PackedRecords, read_sets
from videollama2.errors import CheckpointNotFoundError, ConfigError, DataError
from videollama2.flags import add_count_flag
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO
from videollama2.ranks import usable_cores

MediaCheck = Literal["quick", "open", "decode"]
"""How thoroughly the files named by records are checked."""

_BARS = 10
_BAR_WIDTH = 40

_TEMPLATE_TOKENS = 32
"""Upper bound of the tokens that a chat template adds at the start and for each turn; lengths exclude them."""


@dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        modalities: number of valid records by :func:`modality`.
        wrong: number of invalid records.
        problems: lines that name file, record and rule. Records that name the same broken file share a line.
        remarks: lines about files that are damaged but usable.
        unread: unknown keys with the number of their records (of turns, for ``conversations.KEY``).
        decoded, seconds: number of decoded files, and the time it took.
        sounds: length in seconds of each sound track that is heard.
        silent: number of videos without a sound track among those that are heard.
        sound_tokens: tokens of a sound, 0 if no record has any.
    """

    modalities: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    media_lengths: list[int] = field(default_factory=list)
    text_lengths: list[int] = field(default_factory=list)
    too_long: int = 0
    decoded: int = 0
    seconds: float = 0.0
    sounds: list[float] = field(default_factory=list)
    silent: int = 0
    sound_tokens: int = 0

    def text(self) -> str:
        """Return the report as text for printing."""
        good = sum(self.modalities.values())
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.modalities.items())) or "none"
        lines = [f"{_number(good + self.wrong, 'record')}, {good} of them right: {counts}"]
        if self.decoded:
            rate = self.decoded / max(self.seconds, 1e-9)
            lines += [f"{_number(self.decoded, 'file')} decoded in {self.seconds:.1f} s, {rate:.0f} a second"]
        if self.sounds or self.silent or self.sound_tokens:
            lines += [self._sound_line()]
        if self.media_lengths:
            lines += ["", "media tokens per record", *histogram(self.media_lengths)]
            lines += ["", "text tokens per record", *histogram(self.text_lengths)]
        if self.too_long:
            lines += ["", f"longer than the maximum, to be cut at the end: {_number(self.too_long, 'record')}"]
        if self.unread:
            keys = ", ".join(f"{key!r} ({count})" for key, count in self.unread.most_common())
            lines += ["", f"unknown keys, which are ignored, and how often they occur: {keys}"]
        if self.remarks:
            lines += ["", f"{_number(len(self.remarks), 'remark')}:", *self.remarks]
        if self.problems:
            lines += ["", f"{_number(len(self.problems), 'problem')}:", *self.problems]
        return "\n".join(lines)

    def _sound_line(self) -> str:
        """Describe the sound tracks that are heard; nothing is known of them if no file was opened."""
        parts = []
        if self.sounds:
            low, high, total = min(self.sounds), max(self.sounds), sum(self.sounds)
            parts.append(f"{_number(len(self.sounds), 'track')} of {low:.1f} to {high:.1f} s, {total:.1f} s together")
        if self.silent:
            parts.append(f"{_number(self.silent, 'video')} without a track, heard as silence")
        if self.sound_tokens:
            parts.append(f"{self.sound_tokens} tokens each")
        return f"sound: {'; '.join(parts)}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def check_files(
    files: Sequence[str | Path],
    data_folder: str | Path | None = None,
    processor: Any = None,
    max_length: int | None = None,
    progress: bool = False,
    media: MediaCheck = "open",
    workers: int = 1,
    va: bool = False,
    sampling: FrameSampling | None = None,
) -> CheckReport:
    """Read annotation files as training does, but collect all problems instead of stopping at the first ones.

    Args:
        files: see :func:`videollama2.data.formats.rows.read_rows`.
        data_folder: folder to which media paths are relative; by default each file's own folder.
        processor: processor of the model to be trained; without it, no lengths are computed.
        max_length: maximum tokens of one sample. Longer records are counted. Those whose answers are cut off completely
            are problems, because training would stop at them.
        progress: show a progress bar for anything that takes longer than a few seconds.
        media: ``open`` reads the first packet of every file, ``decode`` its first and last frame, ``quick`` neither.
        workers: number of processes that decode.
        va: whether videos are heard, unless their record says so itself.
        sampling: the choice of frames, see :class:`videollama2.data.samples.SampleReader`.
    """
    report = CheckReport()
    for file in files:
        problems: list[str] = []
        records: Sequence[Record] = ()
        try:
            (records,) = read_sets([file], data_folder, problems, progress, report.unread, [va], sampling=sampling)
        except DataError as error:
            # If a file has only bad records, each of them has been reported already.
            if not problems:
                report.problems.append(str(error))
        report.wrong += len(problems)
        report.problems += problems
        if media != "quick" and records:
            records = _check_media(report, records, media == "decode", workers, progress)
        if processor is not None and records:
            right = _count_lengths(report, records, processor, max_length, sampling)
        else:
            right = iter(records)
        report.modalities.update(map(modality, right))
    return report


def _check_media(
    report: CheckReport, records: Sequence[Record], decode: bool, workers: int, progress: bool
) -> Sequence[Record]:
    """Add the problems of media files to the report, and return the records whose files are all usable."""
    from videollama2.data.files_check import check_media_files, without_bounds

    checked = check_media_files((m for record in records for m in record.media), decode, workers, progress)
    if decode:
        report.decoded += checked.count
        report.seconds += checked.seconds
    report.remarks += checked.remarks.values()
    report.sounds += [seconds for seconds in checked.sounds.values() if seconds is not None]
    report.silent += sum(seconds is None for seconds in checked.sounds.values())
    if not checked.problems:
        return records
    # Several records may name the same broken file: the problem names the first one and counts the others.
    right = PackedRecords(records[0].source)
    first_names: dict[str, str] = {}
    more: Counter[str] = Counter()
    for record in records:
        keys = (medium if decode else without_bounds(medium) for medium in record.media)
        reason = next((checked.problems[key] for key in keys if key in checked.problems), None)
        if reason is None:
            right.append(record)
            continue
        report.wrong += 1
        more[reason] += reason in first_names
        first_names.setdefault(reason, record.name)
    for reason, name in first_names.items():
        others = f" (and {_number(more[reason], 'other record')})" if more[reason] else ""
        report.problems.append(f"{name}{others}: {reason}")
    return right


def _count_lengths(
    report: CheckReport,
    records: Sequence[Record],
    processor: Any,
    max_length: int | None,
    sampling: FrameSampling | None,
) -> Iterator[Record]:
    """Add to the report's lengths, and yield the records that keep an answer within ``max_length``."""
    # Imported here because the command line imports this module at every start, which must stay fast.
    from videollama2.data.dataset import VideoInstructionDataset
    from videollama2.processing import media_tokens

    unlimited = VideoInstructionDataset(records, processor, max_length=1 << 30, sampling=sampling)
    report.media_lengths += unlimited.media_lengths
    if any(AUDIO in medium.parts for record in records for medium in record.media):
        report.sound_tokens = media_tokens(processor.model_config, AUDIO)
    pairs = zip(unlimited.lengths, unlimited.media_lengths, strict=True)
    report.text_lengths += [whole - media for whole, media in pairs]
    if not max_length:
        yield from records
        return
    report.too_long += sum(whole > max_length for whole in unlimited.lengths)
    limited = VideoInstructionDataset(records, processor, max_length, sampling=sampling)
    for record, length in zip(records, unlimited.lengths, strict=True):
        try:
            if length + _TEMPLATE_TOKENS * (1 + len(record.conversations)) > max_length:
                limited.tokens(record)
            yield record
        except DataError as error:
            report.wrong += 1
            report.problems.append(f"{record.name}: {error}")


def modality(record: Record) -> str:
    """Return ``video``, ``image``, ``audio``, ``audio-video``, ``several media`` or ``text only``."""
    kinds = ["audio-video" if medium.va else medium.kind for medium in record.media]
    return "text only" if not kinds else kinds[0] if len(kinds) == 1 else "several media"


def histogram(values: Sequence[int]) -> list[str]:
    """Return the lines of a histogram with at most ten bars of equal width."""
    low, high = min(values), max(values)
    step = max(1, -(-(high - low + 1) // _BARS))
    bars = Counter((value - low) // step for value in values)
    longest = max(bars.values())
    lines = []
    for bar in range(max(bars) + 1):
        start = low + bar * step
        mark = "#" * max(round(_BAR_WIDTH * bars[bar] / longest), bars[bar] > 0)
        lines.append(f"  {start:>7} to {start + step - 1:>7} {bars[bar]:>9} {mark}")
    return lines


def add_check_command(commands: Any) -> None:
    """Add ``check`` to the commands of ``videollama2 data``; the handler returns 1 if there is a problem."""
    check = commands.add_parser("check", help="report everything that is wrong with annotation files")
    check.add_argument("files", nargs="+", metavar="FILE", help="JSON, tar, Parquet, dataset folder")
    check.add_argument(
        "--data-folder", metavar="DIR", help="folder that media paths are relative to (default: FILE's folder)"
    )
    check.add_argument(
        "--model-path",
        default=TINY_MODEL_NAME,
        metavar="NAME",
        help="model whose tokenizer counts tokens (default %(default)s)",
    )
    add_count_flag(check, "--model-max-length", "count the records that are longer")
    media = check.add_mutually_exclusive_group()
    media.add_argument("--quick", action="store_true", help="do not open videos, images and sounds")
    media.add_argument("--decode", action="store_true", help="decode the first and last frame and the sound of files")
    check.add_argument("--va", action="store_true", help="videos are heard too, as with train.py --va True")
    check.add_argument(
        "--sampling", default="index", choices=("index", "time", "fps"), help="the choice of frames, as in train.py"
    )
    check.add_argument("--fps", type=float, default=1.0, metavar="X", help="frames per second of --sampling fps")
    add_count_flag(check, "--max-frames", "most frames of --sampling fps", default=MAX_FRAMES)
    add_count_flag(check, "--workers", "processes that decode (default: the cores this process may use)")
    add_debug_flag(check)
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from videollama2.audio_config import AudioConfig
    from videollama2.hub import resolve_name
    from videollama2.processing import VideoLlama2Processor

    if args.workers is not None and not args.decode:
        raise ConfigError("--workers is about --decode")
    path = args.model_path
    try:
        processor = VideoLlama2Processor.from_pretrained(resolve_name(path))
    except OSError as error:
        raise CheckpointNotFoundError(
            f"--model-path {path}: neither a folder with a model's files nor a hub name that can be reached"
        ) from error
    if not processor.model_config.hears:
        # Data for the audio stages are counted for a model that does not hear yet: a clip is as long as published ones.
        processor.model_config.audio_config = AudioConfig()
    report = check_files(
        args.files,
        args.data_folder,
        processor,
        args.model_max_length,
        progress=True,
        media="quick" if args.quick else "decode" if args.decode else "open",
        workers=args.workers or usable_cores(),
        va=args.va,
        sampling=FrameSampling.over(args.sampling, fps=args.fps, max_frames=args.max_frames),
    )
    print(f"lengths are counted in the tokens of {args.model_path}")
    print(report.text())
    return 1 if report.problems else 0
