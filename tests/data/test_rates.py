"""Frames by rate: a long clip has more frames than a short one, and records say what is special about them."""

import json

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data.helpers import dialogue
from videollama2.data.caches.index import Index
from videollama2.data.check import check_files
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import read_sets
from videollama2.errors import DataError
from videollama2.media.frames import FrameSampling, select_frames
from videollama2.media.video import read_clip
from videollama2.processing import VideoLlama2Processor, media_tokens
from videollama2.shapes.encoding import encode_video

RATE = FrameSampling.over("fps", fps=2, max_frames=6)
SECONDS = {"short": 2, "long": 9}


@pytest.fixture(scope="module")
def processor():
    return VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")


@pytest.fixture
def file(tmp_path):
    """Clips of two and of nine seconds, a part of the longer one, and a number of frames of its own."""
    draw = np.random.default_rng(0)
    for name, seconds in SECONDS.items():
        frames = draw.integers(0, 255, (8 * seconds, 32, 32, 3), np.uint8)
        (tmp_path / f"{name}.mp4").write_bytes(encode_video(frames))
    turns = dialogue(("<video>\nWhat?", "This."))
    rows = [{"id": name, "video": f"{name}.mp4", "conversations": turns} for name in SECONDS]
    rows += [{**rows[1], "id": "part", "start": 1, "end": 3}, {**rows[1], "id": "own", "num_frames": 4}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "rows.json"


def test_frames_tokens_and_lengths_agree(file, processor, tmp_path):
    (records,) = read_sets([file], sampling=RATE, index=Index(tmp_path / "index"))
    (uncounted,) = read_sets([file])
    dataset = VideoInstructionDataset(records, processor, 4096, sampling=RATE)
    frames = [len(dataset[i]["media"][0][1]) for i in range(4)]
    clip = read_clip(file.parent / "short.mp4", FrameSampling(None))
    assert frames[0] == round(clip.total / clip.fps * 2) and frames[1:] == [6, 4, 4]
    config = processor.model_config
    assert list(dataset.media_lengths) == [media_tokens(config, "video", count) for count in frames]
    assert len({*dataset.lengths}) > 1
    # What is counted when records are read is what a stream counts when it reads them.
    streamed = VideoInstructionDataset(uncounted, processor, 4096, sampling=RATE)
    for i in range(4):
        one, other = dataset[i], streamed[i]
        assert one["input_ids"] == other["input_ids"]
        assert one["media"][0][1].equal(other["media"][0][1])
    report = check_files([file], processor=processor, sampling=RATE)
    assert report.media_lengths == list(dataset.media_lengths)


def test_a_clip_that_changed_is_told(file, processor):
    (records,) = read_sets([file], sampling=RATE)
    (file.parent / "short.mp4").write_bytes((file.parent / "long.mp4").read_bytes())
    with pytest.raises(DataError, match=r"record 'short': .*short.mp4: has changed: 6 frames, 3 when counted"):
        VideoInstructionDataset(records, processor, 4096, sampling=RATE)[0]


def test_a_clip_too_short_for_the_connector_names_the_rate(file, processor):
    slow = FrameSampling.over("fps", fps=0.1)
    (records,) = read_sets([file], sampling=slow)
    with pytest.raises(DataError, match=r"record 'short': .*short.mp4: 0.1 fps: .* makes no visual token from 1 frame"):
        VideoInstructionDataset(records, processor, 4096, sampling=slow)[0]


@pytest.mark.parametrize("rule", ["index", "time"])
@pytest.mark.parametrize("fps", [0.5, 1, 2, 3])
def test_rates(rule, fps):
    """Twenty seconds at 24 frames per second."""
    sampling = FrameSampling(None, fps=fps, max_frames=100, sampling=rule)
    chosen = select_frames(480, 24.0, sampling)
    assert len(chosen) == 20 * fps
    assert all(abs(b - a - 24 / fps) <= 1 for a, b in zip(chosen, chosen[1:], strict=False))
