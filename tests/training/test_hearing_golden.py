"""The audio stages and their data against the published code: what learns, ids, labels and media."""

import json
from pathlib import Path

import pytest

from tests.conftest import golden_audio_dir
from videollama2 import train
from videollama2.checkpoints import load_checkpoint
from videollama2.constants import IGNORE_INDEX
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.record import parse_record
from videollama2.errors import DataError
from videollama2.prompting import training_ids
from videollama2.training.model.build import build_model

from .helpers.hearing import stage_flags, write_beats, write_seeing
from .helpers.runs import flags

GOLDEN = golden_audio_dir()
STAGES = {
    "pretrain_audio": {},
    "finetune_audio": {"tune_audio_tower": True},
    "va_joint": {"tune_audio_tower": True, "tune_adapter_llm": True},
}
PARTS = {
    "embed_tokens": "model.language_model.embed_tokens.",
    "decoder": "model.language_model.",
    "vision_tower": "model.vision_tower.",
    "mm_projector": "model.mm_projector.",
    "audio_tower": "model.audio_tower.",
    "mm_projector_a": "model.mm_projector_a.",
    "lm_head": "lm_head.",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory, parts):
    """A model that sees and an audio encoder."""
    folder = tmp_path_factory.mktemp("start")
    return write_seeing(folder / "seeing", parts), write_beats(folder / "beats.pt")


def part_of(name):
    return next(part for part, prefix in PARTS.items() if name.startswith(prefix))


def published_stages():
    stages = json.loads((GOLDEN / "training_stages.json").read_text())
    assert [stage["stage"] for stage in stages] == list(STAGES)
    return stages


@pytest.mark.parametrize("published", published_stages(), ids=lambda stage: stage["stage"])
def test_what_learns_and_how_it_is_kept(world, start, tmp_path, published):
    seeing, beats = start
    own = STAGES[published["stage"]]
    changes = stage_flags(seeing, beats, bf16=True, **own)
    arguments = train.parse_arguments(flags(world, seeing, tmp_path, **changes))
    model, _ = build_model(*arguments)
    learning: dict[str, set] = {}
    dtypes: dict[str, set] = {}
    for name, parameter in model.named_parameters():
        learning.setdefault(part_of(name), set()).add(parameter.requires_grad)
        dtypes.setdefault(part_of(name), set()).add(str(parameter.dtype).removeprefix("torch."))
    for part, group in published["groups"].items():
        assert group["learning"] in (0, group["tensors"])
        # The embeddings of this small model are its head too.
        assert learning.get(part, learning["embed_tokens"]) == {group["learning"] > 0}, part
        # What learns is float32 here, the rest as published.
        expected = {"float32"} if group["learning"] else set(group["dtype"])
        assert dtypes.get(part, dtypes["embed_tokens"]) == expected, part
    assert (train._stage(arguments[0]) == "pretrain_chat") == published["is_pretraining"]
    config = model.config.to_flat_dict()
    for name in ("mm_projector_a_type", "tune_mm_mlp_adapter_a", "mm_projector_type", "mm_vision_select_layer"):
        assert config[name] == published["config"][name], name
    files = {name for name in published["files"] if name.endswith(".bin")}
    alone = {part + ".bin" for part in arguments[0].parts_alone}
    assert alone == (files if published["stage"] != "va_joint" else set())  # a whole model holds both parts


@pytest.fixture(scope="module")
def published_model():
    return load_checkpoint(GOLDEN / "models" / "qwen2-stc_connector_v35-siglip-beats")


def published_items():
    sets = json.loads((GOLDEN / "records.json").read_text())
    return [
        pytest.param(entry["set"], item, id=f"{entry['set']}-{i}")
        for entry in sets
        for i, item in enumerate(entry["items"])
    ]


def here(record):
    names = [Path(record[key]).name for key in ("audio", "video") if key in record]
    return all((GOLDEN / "media" / name).is_file() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "item"), published_items())
def test_records_become_the_published_ids_labels_and_media(published_model, monkeypatch, name, item):
    if not here(item["record"]):
        pytest.skip("its file is not in this part of the reference values")
    monkeypatch.chdir(GOLDEN)  # paths of sounds do not begin in the data folder
    _, processor = published_model
    media = item["media"]
    va = isinstance(media.get("video"), dict)
    record = parse_record(item["record"], 0, "train.json", GOLDEN / "media", va)
    stage = "pretrain_chat" if name == "stage1_pretrain" else "finetune"
    ids, labels = training_ids(record.conversations, record.kinds, processor.tokenizer, stage)
    assert (ids, labels) == (item["input_ids"], item["labels"])

    sample = VideoInstructionDataset([record], processor, 1 << 20, stage)[0]
    learnt = [label for label in item["labels"] if label != IGNORE_INDEX]
    assert [label for label in sample["labels"] if label != IGNORE_INDEX] == learnt
    shapes = {kind: list(values.shape) for kind, values in sample["media"]}
    # Published text alone has a filter bank of zeros with it, whose features are cut to nothing.
    assert shapes == (media["video"] if va else media if record.media else {})
    config = processor.model_config
    assert sample["input_ids"].count(config.audio_token_id) == (1496 if "audio" in shapes else 0)
    assert sample.get("silent", 0) == ("video_no_audio" in item["record"].get("video", "") and va)


def test_first_stage_records_have_one_medium_and_one_answer(published_model, tmp_path):
    _, processor = published_model
    rows = [row for row in json.loads((GOLDEN / "labels_audio.json").read_text()) if row.get("published_error")]
    assert rows
    for row in rows:
        with pytest.raises(DataError):
            training_ids(row["conversations"], ["audio"] * bool(row["tag"]), processor.tokenizer, "pretrain_chat")
