"""Folders that open without this package, and the cards in them."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from tests.conftest import ROOT
from videollama2 import cli
from videollama2.checkpoints import load_pretrained_model
from videollama2.checkpoints.card import Provenance, write_card
from videollama2.checkpoints.files import RUN_FILE, TINY_FOLDER
from videollama2.errors import ConfigError
from videollama2.model_code import ENTRY, needed_modules
from videollama2.processing import VideoLlama2Processor

CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
QUESTION = "How many objects are there?"

OUTSIDER = """
import importlib.util, json, sys
folder, root, clip, question = sys.argv[1:]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [entry for entry in sys.path if entry not in ("", root)]
assert importlib.util.find_spec("videollama2") is None
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
try:
    AutoProcessor.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    refused = str(error)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
parts = [{"type": "video", "path": clip}, {"type": "text", "text": question}]
options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
inputs = processor.apply_chat_template([{"role": "user", "content": parts}], **options)
ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print(json.dumps({"refused": refused, "ids": ids.tolist(), "file": sys.modules["videollama2"].__file__}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "portable"
    assert cli.main(["export", "videollama2-tiny", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_an_exported_folder_opens_without_the_package(exported, tmp_path):
    """In a process that cannot import videollama2, with the Auto classes of transformers."""
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDER, exported, ROOT, CLIP, QUESTION],
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert "trust_remote_code=True" in seen["refused"]  # and not a tokenizer in place of the processor
    assert seen["file"].startswith(str(tmp_path))
    tokenizer, model, processor, _ = load_pretrained_model("videollama2-tiny", device="cpu")
    parts = [{"type": "video", "path": str(CLIP)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert seen["ids"] == ids.tolist() and tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_an_exported_folder_opens_with_the_package_as_any_other(exported, tmp_path):
    _, model, processor, _ = load_pretrained_model(exported, device="cpu")
    _, built_in, _, _ = load_pretrained_model("videollama2-tiny", device="cpu")
    same = zip(model.state_dict().values(), built_in.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    # Saved again without code, the folder does not claim to have any; with code, it does.
    for with_code in (False, True):
        target = tmp_path / str(with_code)
        model.save_pretrained(target, with_code=with_code)
        processor.save_pretrained(target, with_code=with_code)
        assert ("auto_map" in json.loads((target / "config.json").read_text())) is with_code
        assert (target / ENTRY).exists() is with_code
        assert isinstance(AutoProcessor.from_pretrained(target), VideoLlama2Processor)
    assert AutoTokenizer.from_pretrained(exported, trust_remote_code=False).vocab_size == processor.tokenizer.vocab_size


def test_only_what_a_model_needs_is_exported():
    modules = needed_modules()
    assert {"videollama2", "videollama2.auto", "videollama2.media.pyav.reader", "videollama2.model"} <= set(modules)
    rooms = {name.split(".")[1] for name in modules if "." in name}
    assert not rooms & {"checkpoints", "inference", "training", "eval", "serve", "shapes", "engines", "data", "cli"}


def test_an_output_that_is_in_use_is_refused(exported, capsys):
    assert cli.main(["export", "videollama2-tiny", str(exported)]) == 2
    assert f"{exported} exists and is not empty" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ cards


@pytest.fixture
def run_folder(tmp_path):
    """The files of a run that a card is made from."""
    identity = {
        "data": {"data_path": [["/data/clips.json", "ab" * 32]], "eval_data_path": []},
        "weights": {"model_path": ["base-llm", "rev"], "vision_tower": ["clip", "rev"]},
        "flags": {"learning_rate": 2e-5, "lora_enable": False, "bf16": True, "seed": 42},
        "batch": 128,
        "split": {},
    }
    (tmp_path / RUN_FILE).write_text(json.dumps({"identity": identity}))
    log = [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": 1.25},
        {"step": 2, "eval_loss": 1.5, "eval_answer_accuracy": 0.5},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": log}))
    (tmp_path / "loss.png").write_bytes(b"")
    return tmp_path


def test_a_card_tells_base_data_recipe_and_result(run_folder):
    text = write_card(run_folder, Provenance(str(TINY_FOLDER), run_folder, "Trained here.")).read_text()
    assert f"base_model: {TINY_FOLDER}" in text and "Trained here." in text
    assert "| `--data_path` | clips.json | `abababababababab` |" in text
    assert "| `--learning_rate` | 2e-05 |" in text and "| samples in a step | 128 |" in text
    assert "lora_enable" not in text
    assert "| steps | 2 |" in text and "| last training loss | 1.2500 |" in text
    assert "| evaluation loss | 1.5000 |" in text and "| answers right in evaluation | 50.0% |" in text
    assert "![Training loss](loss.png)" in text


def test_a_card_names_the_licence_of_the_base_or_says_that_there_is_none(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    folder.mkdir()
    provenance = Provenance(str(base), None, "Exported.")
    assert "names no licence" in write_card(folder, provenance).read_text()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\nlicense: none\n")
    assert "\nlicense: apache-2.0\n" in write_card(folder, provenance).read_text()


def test_a_card_of_the_users_own_is_kept(run_folder):
    (run_folder / "README.md").write_text("# Mine\n")
    assert write_card(run_folder, Provenance("base", run_folder, "")).read_text() == "# Mine\n"


def test_unknown_types_are_refused(tmp_path):
    from videollama2.checkpoints.merge import export_model

    with pytest.raises(ConfigError, match="dtype must be one of"):
        export_model("videollama2-tiny", tmp_path / "out", dtype="int3")
