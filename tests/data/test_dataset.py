"""Samples, truncation, lengths, and the order of samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from videollama2.config import VideoLlama2Config
from videollama2.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.order.mixture import shares
from videollama2.data.order.sampler import InOrderSampler, MixtureSampler, ModalityLengthSampler
from videollama2.data.records import read_records
from videollama2.data.samples import fit_length
from videollama2.errors import DataError
from videollama2.processing import VideoLlama2Processor, load_image_processor
from videollama2.shapes.encoding import encode_video
from videollama2.shapes.parts import TinySizes, build_tokenizer

FRAMES = 4
VISUAL = 8  # visual tokens of one medium: 4 x 4 patches and 4 frames through stc_connector_v35


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data")
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), np.uint8)
    (path / "v.mp4").write_bytes(encode_video(frames))
    return path


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> VideoLlama2Processor:
    sizes = TinySizes(vocab_size=640, image_size=32, patch_size=8)
    config = VideoLlama2Config(
        text_config={"model_type": "qwen2", **sizes.text_config()},
        vision_config={"model_type": "clip_vision_model", **sizes.vision_config()},
        mm_projector_type="stc_connector_v35",
        num_frames=FRAMES,
    )
    path = tmp_path_factory.mktemp("processor")
    (path / "preprocessor_config.json").write_text(json.dumps(sizes.preprocessor()))
    return VideoLlama2Processor(load_image_processor(path, config), build_tokenizer(640), config)


def dataset(folder, processor, rows, max_length=200) -> VideoInstructionDataset:
    path = folder / "data.json"
    path.write_text(json.dumps(rows))
    return VideoInstructionDataset(read_records([path]), processor, max_length)


def row(*pairs: tuple[str, str], **fields: object) -> dict:
    turns = [turn for q, a in pairs for turn in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
    return {"id": "r", **fields, "conversations": turns}


VIDEO = row(("<video>\nWhat shape is it?", "circle"), ("Is it red?", "no"), video="v.mp4")
TEXT = row(("Is a circle a shape?", "yes"))
TWO = row(("<video>\nWhat is it?", "a circle"), ("And <video> here?", "a cross"), video=["v.mp4", "v.mp4"])


def test_sample(folder, processor):
    sample = dataset(folder, processor, [VIDEO])[0]
    ids, labels = sample["input_ids"], sample["labels"]
    assert len(ids) == len(labels)
    assert ids.count(processor.video_token_id) == VISUAL
    learnt = processor.tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    assert learnt == "circle<|im_end|>\nno<|im_end|>\n"
    ((kind, pixels),) = sample["media"]
    assert kind == "video"
    assert pixels.shape == (FRAMES, 3, 32, 32)


@pytest.mark.parametrize("length", range(12, 64, 3))
def test_cutting_keeps_placeholders_whole(folder, processor, length):
    whole = dataset(folder, processor, [TWO])[0]
    data = dataset(folder, processor, [TWO], max_length=length)
    try:
        cut = data[0]
    except DataError as error:
        # the first answer ends after the first medium, so only very short samples have no label
        assert length < 28
        assert "record 'r'" in str(error)
        return
    kept = len(cut["input_ids"])
    assert kept <= length
    assert cut["input_ids"] == whole["input_ids"][:kept]
    assert cut["labels"] == whole["labels"][:kept]
    visual = cut["input_ids"].count(processor.video_token_id)
    assert visual == VISUAL * len(cut["media"])
    assert kept > length - VISUAL or kept == len(whole["input_ids"])


def test_fit_length():
    ids = [1, VIDEO_TOKEN_INDEX, 2, IMAGE_TOKEN_INDEX, 3]
    assert [fit_length(ids, [4, 2], n) for n in (0, 1, 4, 5, 6, 7, 8, 9, 99)] == [0, 1, 1, 2, 3, 3, 4, 5, 5]


def test_record_without_label_is_an_error_with_its_name(folder, processor):
    with pytest.raises(DataError, match=r"data\.json: record 'r': no labelled token within the 10 tokens"):
        dataset(folder, processor, [VIDEO], max_length=10)[0]


def test_unreadable_file_is_an_error_with_its_name(folder, processor):
    (folder / "broken.mp4").write_bytes((folder / "v.mp4").read_bytes()[:300])
    with pytest.raises(DataError, match=r"record 'r'.*broken\.mp4"):
        dataset(folder, processor, [{**VIDEO, "video": "broken.mp4"}])[0]


def test_empty_set(processor):
    with pytest.raises(DataError, match="no record"):
        VideoInstructionDataset([], processor, 100)


def test_lengths_count_visual_tokens(folder, processor):
    text_alone = row(("What shape is it?", "circle"), ("Is it red?", "no"))
    data = dataset(folder, processor, [VIDEO, text_alone, TWO])
    assert list(data.media_lengths) == [VISUAL, 0, 2 * VISUAL]
    assert data.lengths[0] >= data.lengths[1] + VISUAL
    assert dataset(folder, processor, [TWO], max_length=15).lengths[0] == 15


def test_batch_is_padded_on_the_right(folder, processor):
    data = dataset(folder, processor, [VIDEO, TEXT])
    samples = [data[0], data[1]]
    batch = TrainingCollator(processor.pad_token_id)(samples)
    long, short = len(samples[0]["input_ids"]), len(samples[1]["input_ids"])
    assert batch["input_ids"].shape == (2, long)
    assert batch["attention_mask"].sum(dim=1).tolist() == [long, short]
    assert torch.all(batch["labels"][1, short:] == IGNORE_INDEX)
    assert batch["pixel_values_videos"].shape == (1, FRAMES, 3, 32, 32)
    assert "pixel_values" not in batch


def test_grouped_order():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 500, (203,), generator=generator).tolist()
    visual = [i % 3 != 0 for i in range(203)]
    sampler = ModalityLengthSampler(lengths, visual, batch_size=8, seed=5)
    order = list(sampler)
    assert sorted(order) == list(range(203))
    assert order == list(sampler)
    batches = [order[i : i + 8] for i in range(0, len(order), 8)]
    pure = [batch for batch in batches if len({visual[i] for i in batch}) == 1]
    assert len(pure) >= len(batches) - 2

    def padding(groups: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in g) * len(g) - sum(lengths[i] for i in g) for g in groups)

    shuffled = torch.randperm(203, generator=generator).tolist()
    assert padding(batches) < 0.5 * padding([shuffled[i : i + 8] for i in range(0, 203, 8)])
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_order_is_filled_up_with_nothing():
    assert list(InOrderSampler(5, 4)) == [0, 1, 2, 3, 4, 5, 5, 5]
    assert len(InOrderSampler(5, 4)) == 8
    assert list(InOrderSampler(4, 4)) == [0, 1, 2, 3]
    order = list(MixtureSampler([7], multiple=4, seed=1))
    assert sorted(order) == list(range(8))
    assert order[-1] == 7
    assert order[:7] != list(range(7))


def test_nothing_is_a_row_without_label(folder, processor):
    data = dataset(folder, processor, [VIDEO])
    assert data[1] == {"input_ids": [processor.pad_token_id], "labels": [IGNORE_INDEX], "media": []}
    batch = TrainingCollator(0)([data[0], data[1]])
    assert (batch["labels"][1] == IGNORE_INDEX).all()
    assert batch["pixel_values_videos"].shape[0] == 1


def test_skipped_record_says_why(folder, processor):
    rows = [VIDEO, TEXT]
    (folder / "broken.mp4").write_bytes((folder / "v.mp4").read_bytes()[:300])
    rows[0] = {**VIDEO, "video": "broken.mp4"}
    strict = dataset(folder, processor, rows)
    lenient = VideoInstructionDataset(strict.records, processor, 200, skip_bad=True)
    batch = TrainingCollator(0)([lenient[0], lenient[1]])
    (message,) = batch["bad_samples"]
    assert "broken.mp4" in message
    assert "pixel_values_videos" not in batch
    assert "bad_samples" not in TrainingCollator(0)([lenient[1]])


def test_shares_by_weight():
    assert shares(10, [1, 1]) == [5, 5]
    assert shares(10, [2, 1]) == [7, 3]
    assert shares(7, [0.5, 0.25, 0.25]) == [3, 2, 2]
    assert sum(shares(101, [0.1, 0.2, 0.7])) == 101


@pytest.mark.parametrize("grouped", [False, True])
def test_weights_draw_without_repeating_before_all_were_seen(grouped):
    sizes, weights = [20, 4], [1.0, 1.0]
    if grouped:
        lengths, visual = list(range(24)), [i % 2 == 0 for i in range(24)]
        sampler = ModalityLengthSampler(lengths, visual, 4, seed=3, sizes=sizes, weights=weights)
    else:
        sampler = MixtureSampler(sizes, weights, seed=3)
    order = list(sampler)
    assert len(order) == len(sampler) == 24
    counts = [order.count(i) for i in range(24)]
    assert sum(counts[:20]) == 12
    assert set(counts[:20]) == {0, 1}
    assert set(counts[20:]) == {3}
    assert order == list(sampler)
    sampler.set_epoch(1)
    assert set(list(sampler)[:12]) != set(order[:12])
