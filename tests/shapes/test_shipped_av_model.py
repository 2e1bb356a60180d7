"""The shipped checkpoint that hears: opens by name, answers about clips it has not met, and needs what it should."""

import json
import re
from collections import Counter

import pytest
import torch
from safetensors import safe_open

from tests.conftest import ROOT
from videollama2 import mm_infer_batch, model_init
from videollama2.cli import main
from videollama2.constants import TINY_AV_MODEL_NAME
from videollama2.hub import built_in_folder
from videollama2.shapes.sets import write_set
from videollama2.shapes.sound_questions import BOTH_TYPES, HEARD_TYPES

FOLDER = built_in_folder(TINY_AV_MODEL_NAME)
CLIP = ROOT / "videollama2" / "assets" / "demo" / "sounding_shapes.mp4"


@pytest.fixture(scope="module")
def tiny():
    return model_init(TINY_AV_MODEL_NAME)


@pytest.fixture(scope="module")
def asked(tiny, tmp_path_factory):
    """Four questions of each type about clips of a seed of their own, with what is seen and heard in the clip."""
    _, processor, _ = tiny
    folder = tmp_path_factory.mktemp("heard")
    write_set(folder, videos=90, seed=987655, balanced_questions=64, sound=True)
    rows = json.loads((folder / "questions.json").read_text())
    return [(row, processor["video"](folder / row["video"], va=True)) for row in rows]


def right(tiny, asked, change=lambda media: media):
    """Number of right answers by type, each clip changed by a function."""
    model, _, tokenizer = tiny
    requests = [([change(media)], row["question"], "video") for row, media in asked]
    answers = mm_infer_batch(requests, model, tokenizer, max_new_tokens=16)
    return Counter(row["type"] for (row, _), answer in zip(asked, answers, strict=True) if answer == row["answer"])


def test_it_is_small_and_stored_in_16_bits(tiny):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8 * 2**20
    assert not re.search(r"/(root|home|work|tmp)/", (FOLDER / "config.json").read_text())
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118 - no dictionary
    model, _, _ = tiny
    assert model.dtype == torch.float32 or model.device.type != "cpu"
    assert model.config.sees and model.config.hears


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::videollama2.media.readers.MediaWarning")
def test_it_answers_from_what_it_sees_and_hears(tiny, asked):
    """At the accuracies in its README, fewer than 53 of 64 right is a matter of one in a thousand."""
    whole = right(tiny, asked)
    assert whole.total() >= 53, whole
    muted = right(tiny, asked, lambda media: {**media, "audio": torch.full_like(media["audio"], -15.9375)})
    blank = right(tiny, asked, lambda media: {**media, "video": torch.zeros_like(media["video"])})
    for lost, types in ((muted, HEARD_TYPES), (blank, BOTH_TYPES)):
        assert sum(whole[kind] - lost[kind] for kind in types) >= len(types), (whole, lost)
    sight = whole.keys() - set(HEARD_TYPES)
    assert sum(abs(whole[kind] - muted[kind]) for kind in sight) <= 4, (whole, muted)


def test_the_command_of_the_documents(capsys):
    command = ["ask", str(CLIP), "What made the noise?", "--model-path", TINY_AV_MODEL_NAME]
    answers = []
    for flags in ((), ("--no-audio",), ("--audio-only",)):
        assert main([*command, *flags]) == 0
        answers.append(capsys.readouterr().out.strip())
    assert answers[0] == "the purple square" != answers[2]
