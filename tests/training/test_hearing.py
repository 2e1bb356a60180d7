"""The three stages with sound: what each begins with and writes, and what training promises of every run."""

import json
import re
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import golden_audio_dir
from videollama2.checkpoints import load_pretrained_model
from videollama2.checkpoints.write import save_model
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import read_records
from videollama2.errors import ConfigError, DataError, PromptError
from videollama2.inference.api import mm_infer
from videollama2.processing import media_tokens
from videollama2.training.arguments import parse_arguments
from videollama2.training.model.build import build_model

from .helpers.hearing import TOKENS, joint_flags, stage_flags, stages, write_beats, write_records, write_seeing
from .helpers.runs import copy_checkpoint, difference, flags


@pytest.fixture(scope="module")
def beats(tmp_path_factory):
    return write_beats(tmp_path_factory.mktemp("beats") / "beats.pt")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, parts):
    return write_seeing(tmp_path_factory.mktemp("seeing"), parts)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


def built(seeing, beats, world, folder, **changes):
    """Model and processor as the first audio stage makes them, or with other flags."""
    asked = stage_flags(seeing, beats, **changes)
    return build_model(*parse_arguments(flags(world, seeing, folder / "unused", **asked)))


@pytest.mark.slow
def test_each_stage_goes_on_from_the_one_before(run, seeing, beats, files):
    first, second, third = stages(run, seeing, beats, files)
    assert {path.name for path in first.folder.glob("*.bin")} == {"mm_projector_a.bin"}
    assert {path.name for path in second.folder.glob("*.bin")} == {"mm_projector_a.bin", "audio_tower.bin"}
    assert not list(third.folder.glob("*.bin"))
    results = [stage.weights for stage in (first, second, third)]
    for before, after in pairwise(results):
        shared = before.keys() & after.keys()
        assert shared == before.keys()
        pair = [{name: weights[name] for name in shared} for weights in (before, after)]
        assert 0 < difference(*pair) < 2 * 2 * 2e-3  # two steps of Adam, whose largest is about the learning rate
    start = load_file(seeing / "model.safetensors")
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, results[2][name])}
    assert not any("vision_tower" in name for name in moved)
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.mm_projector.readout.0.weight"} <= moved
    # The folders of the audio stages open as whole models.
    given = torch.load(beats, weights_only=True)["model"]
    for stage, tower in ((first, given), (second, second.weights)):
        _, model, processor, _ = load_pretrained_model(stage.folder, device="cpu")
        assert processor.model_config.audio_config.tokens_of(98) == TOKENS
        named = {name.removeprefix("model.audio_tower."): tensor for name, tensor in tower.items()}
        own = model.model.audio_tower.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in named.items() if name in own)
        projector = model.model.mm_projector_a.state_dict()
        assert all(torch.equal(projector[name], stage.weights[f"model.mm_projector_a.{name}"]) for name in projector)


@pytest.mark.slow
def test_a_bare_language_model_learns_to_hear_without_ever_seeing(run, parts, beats, files, world, tmp_path):
    bare = parts / "llm"
    alone = {"data_path": None, "data_path_a": files["audio"]}
    first = run(**stage_flags(bare, beats, **alone))
    second = run(
        **stage_flags(
            bare,
            beats,
            pretrain_mm_mlp_adapter_a=first.folder / "mm_projector_a.bin",
            tune_audio_tower=True,
            tune_adapter_llm=True,
            **alone,
        )
    )
    assert {path.name for path in first.folder.glob("*.bin")} == {"mm_projector_a.bin"}
    sound = golden_audio_dir() / "media" / "door_cut.wav"
    for folder in (first.folder, second.folder):  # the projector beside a bare decoder, and a whole model
        tokenizer, model, processor, _ = load_pretrained_model(folder, device="cpu")
        assert model.config.hears and not model.config.sees and model.model.mm_projector is None
        answer = mm_infer(processor["audio"](sound), "What?", model, tokenizer, modal="audio", max_new_tokens=2)
        assert isinstance(answer, str)
        with pytest.raises(PromptError, match="no vision encoder"):
            processor["video"](golden_audio_dir() / "media" / "duet_cut.mp4")
    assert not any("vision_tower" in name for name in second.weights)
    with pytest.raises(ConfigError, match="give --vision_tower, or --audio_tower for a model that hears"):
        built(bare, None, world, tmp_path, tune_mm_mlp_adapter_a=None)


@pytest.fixture(scope="module")
def joint(seeing, files, tmp_path_factory):
    """Flags of the joint stage with an encoder that skips every second layer."""
    dropping = write_beats(tmp_path_factory.mktemp("dropping") / "beats.pt", encoder_layerdrop=0.5)
    return joint_flags(seeing, dropping, files)


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(run, joint):
    """Also where layers of the audio encoder are skipped: the micro-batches of a step skip the same ones."""
    whole = run(per_device_train_batch_size=4, max_steps=4, **joint)
    parts_of_it = run(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4, **joint)
    for a, b in zip(whole.log, parts_of_it.log, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    other = run(per_device_train_batch_size=4, max_steps=4, seed=7, data_seed=42, **joint)
    assert other.losses != pytest.approx(whole.losses, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["second", "joint"])
def test_a_resumed_run_equals_an_uninterrupted_one(run, joint, files, tmp_path, stage):
    alone = {"tune_adapter_llm": None, "data_path": None, "data_path_a": files["audio"], "va": None}
    options = {**joint, **(alone if stage == "second" else {}), "weight_decay": 0.1}
    options |= {"max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    whole = run(**options)
    copy_checkpoint(whole.folder / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    resumed = run(folder=tmp_path / "again", **options)
    assert difference(whole.weights, resumed.weights) <= 1e-6
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)


@pytest.mark.slow
def test_what_no_flag_names_does_not_change(run, joint, world):
    """Weight decay would change the parts that hear in a run without sound."""
    start = run(max_steps=1, **joint)
    plain = run(
        model_path=start.folder,
        vision_tower=None,
        mm_projector_type=None,
        num_frames=None,
        weight_decay=0.5,
        max_steps=2,
    )
    before, after = start.weights, plain.weights
    frozen = {name for name in before if "audio_tower" in name or "mm_projector_a" in name}
    assert len(frozen) > 10
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_lengths_count_the_tokens_of_sounds(seeing, beats, files, tmp_path, world):
    _, processor = built(seeing, beats, world, tmp_path)
    records = read_records([files["av"], files["audio"], files["other"]], va=[True, False, False])
    data = VideoInstructionDataset(records, processor, 400)
    seen = media_tokens(processor.model_config, "video")
    assert list(data.media_lengths) == [seen + TOKENS] * 4 + [TOKENS] * 5 + [seen, seen, 0]
    assert all(length > media for length, media in zip(data.lengths, data.media_lengths, strict=True))
    config = processor.model_config
    heard = [data[i]["input_ids"].count(config.audio_token_id) for i in (0, 4, 9)]
    assert heard == [TOKENS, TOKENS, 0]
    # A record that is too long is cut in front of the video, and not between its pictures and its sound.
    short = VideoInstructionDataset(records, processor, seen + TOKENS + 2)
    with pytest.raises(DataError, match="no labelled token"):
        short[0]


def test_a_sound_is_read_and_encoded_once_in_a_batch(seeing, beats, files, tmp_path, world):
    model, processor = built(seeing, beats, world, tmp_path)
    data = VideoInstructionDataset(read_records([files["audio"]]), processor, 400)
    samples = data.__getitems__([0, 1, 3])  # the first and the last are about the same file
    assert samples[0]["media"][0][1] is samples[2]["media"][0][1]
    batch = TrainingCollator(processor.pad_token_id)(samples)
    assert batch["audio_index"] == [0, 1, 0]
    encoded = []
    model.model.audio_tower.register_forward_hook(lambda module, args, out: encoded.append(len(args[0])))
    model.train()
    model.model.audio_tower.eval()  # no layer is skipped
    together = model(**batch, num_items_in_batch=1).loss
    assert encoded == [2]
    collate = TrainingCollator(processor.pad_token_id)
    alone = sum(model(**collate([sample]), num_items_in_batch=1).loss for sample in samples)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.slow
def test_bad_sounds_and_missing_tracks(run, joint, files, tmp_path, world):
    """A sound that cannot be decoded stops the run or is left out; a video without a track is heard as silence."""
    rows = json.loads(files["audio"].read_text())
    broken = {**rows[0], "id": "broken", "audio": str(golden_audio_dir() / "media" / "not_audio.wav")}
    path = tmp_path / "broken.json"
    path.write_text(json.dumps([broken, *rows]))
    options = {**joint, "data_path": [files["av"], path, files["other"]], "max_steps": 4}
    with pytest.raises(DataError, match=r"record 'broken'.*not_audio\.wav"):
        run(**options)
    result = run(on_bad_sample="skip", **options)
    (line,) = (result.folder / "bad_samples-0.jsonl").read_text().splitlines()
    assert "record 'broken'" in line
    # In three rounds of joint batches each of the four videos is heard once, and some again.
    assert sum(row.get("silent_videos", 0) for row in result.log) >= 1


@pytest.mark.slow
def test_the_gradient_multiplier(seeing, beats, world, tmp_path):
    ratios = {}
    fbank_BTF = torch.randn(1, 98, 32, generator=torch.Generator().manual_seed(0))
    for multiplier in (None, 1.0, 0.5):
        model, _ = built(seeing, beats, world, tmp_path, tune_audio_tower=True, audio_gradient_multiplier=multiplier)
        tower = model.model.audio_tower.eval()
        assert model.config.audio_config.layer_wise_gradient_decay_ratio == (multiplier or 0.6)
        tower(fbank_BTF).last_hidden_state.pow(2).sum().backward()
        ratios[multiplier] = [layer.fc1.weight.grad.norm().item() for layer in tower.encoder.layers]
    first, last = zip(*ratios.values(), strict=True)
    assert last == pytest.approx([last[0]] * 3, rel=1e-4)  # nothing lies above the last layer
    assert first == pytest.approx([first[1] * 0.6, first[1], first[1] * 0.5], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"freeze_mm_mlp_adapter": True},
            "tune_mm_mlp_adapter_a trains the audio projector, but --freeze_mm_mlp_adapter",
        ),
        ({"freeze_vision_tower": False}, "--freeze_vision_tower False trains the vision encoder"),
        ({"lora_enable": True}, "--tune_mm_mlp_adapter_a without --tune_adapter_llm does not"),
        ({"tune_adapter_llm": True, "freeze_backbone": True}, "--freeze_backbone keeps it from learning"),
        ({"tune_adapter_llm": True, "tune_mm_mlp_adapter": True}, "--tune_mm_mlp_adapter keeps it from learning"),
        ({"tune_audio_tower": True, "audio_gradient_multiplier": 2}, "not above 0 and at most 1"),
        ({"audio_gradient_multiplier": 1}, "no effect without --tune_audio_tower"),
        ({"data_path": None}, "must name an annotation file"),
        ({"va": ["True", "False"]}, "--va has 2 values for 1 files"),
        ({"va": ["maybe"]}, "--va maybe must be True or False"),
        ({"joint_ratio": [2, 1]}, "three numbers from 0"),
        ({"joint_ratio": [2, 1, 1], "group_by_modality_length": True}, "both set the order of samples"),
    ],
)
def test_flags_that_contradict_each_other(world, parts, tmp_path, changes, words):
    asked = {"tune_mm_mlp_adapter_a": True, "freeze_vision_tower": True, **changes}
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_arguments(flags(world, parts, tmp_path, **asked))


@pytest.mark.slow
def test_flags_that_need_an_audio_encoder(seeing, beats, files, world, tmp_path):
    with pytest.raises(
        ConfigError, match=r"--tune_mm_mlp_adapter_a needs a model that hears, but .*give --audio_tower"
    ):
        built(seeing, None, world, tmp_path)
    for flag, value in {"va": "True", "data_path_a": files["audio"]}.items():
        with pytest.raises(ConfigError, match=rf"--{flag} needs a model that hears"):
            built(seeing, None, world, tmp_path, tune_mm_mlp_adapter_a=None, **{flag: value})
    hearing = tmp_path / "hearing"
    save_model(*built(seeing, beats, world, tmp_path), hearing)
    model, _ = built(hearing, beats, world, tmp_path)  # the same command goes on from a model that hears
    assert model.config.hears
    with pytest.raises(ConfigError, match=r"--audio_tower .*other\.pt contradicts"):
        built(hearing, tmp_path / "other.pt", world, tmp_path)


def test_a_group_that_is_not_there_gets_no_share(run, joint, files):
    with pytest.raises(ConfigError, match="the data holds no audio record"):
        run(**{**joint, "data_path": [files["av"], files["other"]], "va": ["True", "False"], "joint_ratio": [2, 1, 1]})
