"""Builds the page of ``eval show`` (:mod:`videollama2.eval.report.pages`) from output folders of ``eval run``."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from videollama2.errors import DataError, VideoLlama2Error
from videollama2.eval.benchmarks import configured
from videollama2.eval.controls import MUTED, SHUFFLED_FRAMES, SHUFFLED_WINDOWS, shuffled_order
from videollama2.eval.items import PUBLISHED, Item
from videollama2.eval.report.pages import Page, ShownFrame, ShownQuestion, ShownRun
from videollama2.eval.report.publish import RESULTS_FILE
from videollama2.eval.samples import Sample
from videollama2.eval.store import read_run, read_samples
from videollama2.media.audio import Sound, SoundSampling, read_sound, read_video_sound
from videollama2.media.frames import FrameSampling
from videollama2.media.image import load_image
from videollama2.media.kinds import AUDIO, VIDEO
from videollama2.media.video import read_clip

HEIGHT = 168
"""Height in pixels of a picture; the page displays it at half of that, so that it is sharp on high-density screens."""
WAVE_WIDTH = 640


@dataclass(frozen=True)
class QuestionFilter:
    """The questions to show: only wrong ones, only those of a category, at most ``limit``, with or without frames."""

    wrong: bool = False
    category: str | None = None
    limit: int = 200
    frames: bool = True


def evaluation_page(folders: Sequence[Path], choice: QuestionFilter, data: Path | None = None) -> Page:
    """Return the page of one evaluation, or of two evaluations of the same questions side by side.

    Args:
        folders: output folders of one or two evaluations.
        choice: the questions to show.
        data: data folder of the benchmark, if it has been moved since the evaluation.

    Raises:
        DataError: a folder holds no finished evaluation, or no question fits the choice.
    """
    runs = [_run(folder, folders) for folder in folders]
    former = read_run(folders[0])
    results = json.loads((folders[0] / RESULTS_FILE).read_text(encoding="utf-8"))
    protocol = results.get("protocol", PUBLISHED)
    items, note = _items(former, data)
    samples = list(runs[0].samples.values())
    fitting = [each for each in samples if _fits(each, [run.samples.get(each.id) for run in runs], choice, protocol)]
    if not fitting:
        raise DataError(f"{folders[0]}: no question fits (--wrong, --category)")
    chosen = fitting[: choice.limit]
    root = data or Path(former["about"]["data"])
    clips: dict[str, list[ShownFrame]] = {}
    if choice.frames:
        for item in (items[each.id] for each in chosen if each.id in items):
            if _clip_name(item) not in clips:
                clips[_clip_name(item)] = _frames(item, root, former, results.get("frames"))
    return Page(
        title=f"{results['benchmark']} · {' and '.join(run.name for run in runs)}",
        runs=runs,
        questions=[_question(each, items.get(each.id)) for each in chosen],
        total=len(samples),
        clips=clips,
        category=choice.category or "",
        protocol=protocol,
        note=note or ("The frames are those of A." if len(runs) > 1 and clips else ""),
    )


def _run(folder: Path, folders: Sequence[Path]) -> ShownRun:
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file; is the evaluation finished?")
    results = json.loads(path.read_text(encoding="utf-8"))
    name = Path(str(results["model"])).name
    if len(folders) > 1:  # two evaluations of one model differ by their folders
        name = f"{'AB'[list(folders).index(folder)]}: {name}"
    numbers = [
        f"{metric['name']} ({metric['protocol']}) {metric['overall']['value']:.1f}"
        for metric in results["metrics"]
        if metric["overall"]["value"] is not None
    ]
    return ShownRun(name, ", ".join([str(folder), f"{results.get('frames')} frames", *numbers]), read_samples(folder))


def _items(former: dict[str, Any], data: Path | None) -> tuple[dict[str, Item], str]:
    """Return the items by id, for their options and clips. If the data are gone, return no items and a note."""
    asked, about = former["configuration"], former["about"]
    found = configured(about.get("source_file") or asked["benchmark"], **asked["settings"])
    try:
        return {item.id: item for item in found.asked(data or Path(about["data"]))}, ""
    except DataError as error:
        return {}, f"Without frames and options: {error}"


def _fits(first: Sample, samples: Sequence[Sample | None], choice: QuestionFilter, protocol: str) -> bool:
    if choice.category is not None and first.category != choice.category:
        return False
    return not choice.wrong or any(each is not None and _is_wrong(each, protocol) for each in samples)


def _is_wrong(sample: Sample, protocol: str) -> bool:
    """Whether an answer is not right: it is wrong, could not be read, failed, or was rejected or not judged."""
    if sample.error is not None:
        return True
    verdicts = sample.verdicts().values()
    if verdicts:
        return any(verdict is None or verdict.error is not None or verdict.pred == "no" for verdict in verdicts)
    return sample.read_by(protocol).correct is False


def _question(sample: Sample, item: Item | None) -> ShownQuestion:
    known = {"options": item.options, "media": item.media, "clip": _clip_name(item)} if item else {}
    return ShownQuestion(sample.id, sample.category, sample.question, sample.answer, **known)


def _clip_name(item: Item) -> str:
    return json.dumps([*item.clip, item.control])


def _frames(item: Item, root: Path, former: dict[str, Any], frames: int | None) -> list[ShownFrame]:
    """Return the frames that the model saw, as small pictures, and the sound that it heard as a picture of its wave.

    The wave is that of the published clip of 30 seconds.
    The list is empty if a medium cannot be read; the stored answer then holds the error.
    """
    generation = former["configuration"]["generation"]
    shown = []
    try:
        for number, (kind, name) in enumerate(item.all_media):
            start, end = (item.start, item.end) if number == 0 else (None, None)
            if kind == AUDIO:
                crop = item.crop_start if number == 0 else None
                shown.append(_wave(read_sound(root / name, sampling=SoundSampling(start, end, crop_start=crop))))
                continue
            if kind != VIDEO:
                shown.append(ShownFrame(0.0, _picture(load_image(root / name))))
                continue
            over = generation.get("frames_over", "index")
            count = None if over == "fps" else generation["num_frames"] or frames
            sampling = FrameSampling(count, start, end, sampling="time" if over == "time" else "index")
            clip = read_clip(root / name, sampling, generation["video_backend"])
            frames_THWC, count = clip.frames_THWC, len(clip.times)
            is_shuffled = item.control == SHUFFLED_FRAMES
            order = shuffled_order(count, Path(item.media).name) if is_shuffled else range(count)
            for index in order:
                shown.append(ShownFrame(round(clip.times[index], 2), _picture(Image.fromarray(frames_THWC[index]))))
            if item.use_audio and item.control not in (MUTED, SHUFFLED_WINDOWS):  # those heard another wave, or none
                shown.append(_wave(read_video_sound(root / name)))
    except (VideoLlama2Error, OSError):
        return []
    return shown


def _wave(sound: Sound) -> ShownFrame:
    """Return the wave of a clip, from its lowest to its highest sample in each column of pixels."""
    columns = np.array_split(sound.wave_S, WAVE_WIDTH)
    picture = Image.new("RGB", (WAVE_WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for x, samples_S in enumerate(columns):
        top, bottom = (HEIGHT / 2 * (1 - float(edge(samples_S))) for edge in (np.max, np.min))
        draw.line((x, top, x, max(bottom, top + 1)), fill="#3b6ea5")
    return ShownFrame(0.0, _picture(picture))


def _picture(image: Image.Image) -> str:
    width = max(1, round(image.width * HEIGHT / image.height))
    buffer = io.BytesIO()
    image.convert("RGB").resize((width, HEIGHT), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
