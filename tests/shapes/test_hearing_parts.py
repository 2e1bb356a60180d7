"""The parts that the tiny model learns to hear from, and the captions of sounds."""

import json

import pytest
import torch
from safetensors.torch import load_file

from videollama2.checkpoints.audio_tower import add_hearing, load_beats
from videollama2.checkpoints.connector import load_audio_connector
from videollama2.checkpoints.files import TINY_FOLDER
from videollama2.checkpoints.full import load_checkpoint
from videollama2.shapes.captions import sound_caption, write_captions
from videollama2.shapes.hearing_parts import token_ids_in_use, write_hearing_parts
from videollama2.shapes.parts import world_texts
from videollama2.shapes.pretrain_connector import TOKEN_RMS, word_vectors
from videollama2.shapes.pretrain_hearing import (
    PROJECTOR,
    SOUND_FORMS,
    SoundBatches,
    SoundProbe,
    agreement,
    audio_config,
)
from videollama2.shapes.scene import make_scene
from videollama2.shapes.sets import write_set
from videollama2.shapes.sounds import SoundEvent, Soundtrack, add_sound

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    write_hearing_parts(folder, steps=16, progress=False)
    return folder


@pytest.fixture(scope="module")
def hearing(written):
    """The model and the processor that training begins with."""
    model, processor = load_checkpoint(written / "sight", dtype=torch.float32)
    add_hearing(model, load_beats(written / "beats.pt"), "beats.pt", PROJECTOR)
    load_audio_connector(model, written / "mm_projector_a.bin")
    return model.eval(), processor


@pytest.mark.slow
def test_only_words_that_were_never_used_are_new(written, hearing):
    before, after = load_file(TINY_FOLDER / "model.safetensors"), load_file(written / "sight" / "model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {EMBEDDINGS}
    tokenizer = hearing[1].tokenizer
    used = token_ids_in_use(tokenizer)
    assert {id for text in world_texts() for id in tokenizer(text).input_ids} <= used
    rows = (before[EMBEDDINGS] != after[EMBEDDINGS]).any(dim=1).nonzero().flatten().tolist()
    assert set(rows) == set(range(len(after[EMBEDDINGS]))) - used
    assert {id for word in (" low", " high", " hit") for id in tokenizer(word).input_ids} & set(rows)


@pytest.mark.slow
def test_the_clip_rules_and_the_number_of_tokens_come_along(hearing):
    config = hearing[0].config.audio_config
    for name, value in audio_config().to_diff_dict().items():
        assert getattr(config, name) == value, name
    assert (config.clip_samples, config.num_windows, config.tokens_of(config.clip_frames)) == (32000, 1, 12)


@pytest.mark.slow
@torch.no_grad()
def test_after_a_few_steps_tokens_point_to_what_is_heard(hearing):
    model, processor = hearing
    config = model.config.audio_config
    fbank_BTF, truth = SoundBatches(config, 32, 200)[199]  # these sounds were not learnt from
    tokens_BND = torch.stack(model.get_audio_features(fbank_BTF).pooler_output)
    assert tokens_BND.square().mean().sqrt().item() == pytest.approx(TOKEN_RMS, rel=0.2)
    words_WD = word_vectors(processor.tokenizer, model.get_input_embeddings().weight, SOUND_FORMS)
    probe = SoundProbe(words_WD)
    mixed_BND = tokens_BND[torch.arange(32).roll(1)]
    heard, wrong = (agreement(probe(each), truth)["words"] for each in (tokens_BND, mixed_BND))
    assert heard > 0.3 > wrong + 0.1


@pytest.mark.parametrize(
    ("story", "events", "said"),
    [
        ("tone", [("low", 0.5)], "a low tone"),
        ("heard_first", [("high", 0.2), ("low", 1.2)], "a high tone, then a low tone"),
        ("hits", [("hit", 0.5)], "one hit"),
        ("hits", [("hit", 0.5), ("hit", 1.0), ("hit", 1.5)], "three hits"),
        ("maker", [("hit", 0.5)], "a hit early"),
        ("together", [("chime", 1.7)], "a chime late"),
        ("silent", [], "nothing"),
    ],
)
def test_sounds_in_words(story, events, said):
    track = Soundtrack(story, tuple(SoundEvent(kind, start, 0.1) for kind, start in events))
    assert sound_caption(track) == said


def test_captions_of_a_set_with_sound(tmp_path):
    write_set(tmp_path, videos=12, seed=4, sound=True)
    assert write_captions(tmp_path) == 12
    sounds = {row["audio"]: row for row in json.loads((tmp_path / "sound_captions.json").read_text())}
    for index, row in enumerate(json.loads((tmp_path / "captions.json").read_text())):
        _, track = add_sound(make_scene(4, index))
        said = sound_caption(track)
        assert row["conversations"][1]["value"].endswith(f" sound: {said}.")
        assert (row["video"] in sounds) == (track.story != "silent")
        if row["video"] in sounds:
            prompt, answer = sounds[row["video"]]["conversations"]
            assert (prompt["value"], answer["value"]) == ("<audio>\nDescribe the sound.", f"{said}.")
