"""Folders made by somebody else: one line that names file and field, in bounded time, and no code of theirs is run."""

import ast
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from tests.checkpoints.helpers import connector_folder, edit_config, lora_folder
from tests.conftest import ROOT, golden_dir
from tests.helpers.forked import run_python
from videollama2 import train
from videollama2.checkpoints import build_from_parts, load_pretrained_model
from videollama2.config import VideoLlama2Config
from videollama2.errors import VideoLlama2Error
from videollama2.processing import VideoLlama2Processor

CASES = Path(__file__).parent / "cases"
SECONDS = 10
"""Longest time for a refusal; most take a tenth of a second."""


def refusal(path, *words, load=load_pretrained_model, **options):
    """The message of the refusal: one line that has these words."""
    start = time.thread_time()
    with pytest.raises(VideoLlama2Error) as caught:
        load(path, **options)
    assert time.thread_time() - start < SECONDS
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    for word in words:
        assert word in line
    return line


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_called_one(folder, base, name):
    for path in (folder, base, folder.parent.parent / "clip-tiny"):
        (path / "model.safetensors").unlink(missing_ok=True)
        shutil.copyfile(CASES / "lfs_pointer_weights.txt", path / name)
        words = (str(path / name), "Git LFS pointer", "git lfs pull")
        if path == folder:
            refusal(path, *words)
    refusal(base, str(base / name), "Git LFS pointer", load=parts_with(folder.parent.parent / "clip-tiny"))


def parts_with(tower):
    return lambda path: build_from_parts(path, tower, mm_projector_type="linear")


@pytest.mark.parametrize("make", [connector_folder, lora_folder])
def test_git_lfs_pointers_beside_a_base_model(folder, base, make):
    path = make(folder, base)[0]
    name = {connector_folder: "mm_projector.bin", lora_folder: "adapter_model.safetensors"}[make]
    shutil.copyfile(CASES / "lfs_pointer_weights.txt", path / name)
    refusal(path, str(path / name), "Git LFS pointer")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_git_lfs_pointer_in_place_of_settings(folder, name):
    shutil.copyfile(CASES / "lfs_pointer_weights.txt", folder / name)
    refusal(folder, str(folder / name), "Git LFS pointer")


def test_the_advice_to_run_a_pickle_is_not_passed_on(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": Path}, folder / "pytorch_model.bin")
    assert "weights_only" not in refusal(folder, "more than tensors")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "sub/model.safetensors", 3, None])
def test_an_index_that_names_files_elsewhere(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
    refusal(folder, str(index), "weight_map")


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("num_frames", value) for value in (10**9, 1025, 0, -1, 8.5, True, "8", [8])],
        *[("num_hidden_layers", value) for value in (10**7, 10**30, 0, -3, 1.5, "two", {})],
        *[(name, 10**9) for name in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")],
        ("mm_projector_type", "mlp10000000x_gelu"),
        ("mm_projector_type", f"mlp{'9' * 5000}x_gelu"),
        ("mm_projector_type", "x" * 10**6),
        ("mm_projector_type", ["linear"]),
        ("mm_vision_select_layer", 10**9),
        ("mm_vision_select_feature", {"a": 1}),
        ("mm_vision_tower", ["clip"]),
        ("image_token_id", "<image>"),
        ("model_type", ["videollama2"]),
        ("rope_theta", "high"),
    ],
)
def test_values_out_of_bounds(folder, field, value):
    edit_config(folder, **{field: value})
    refusal(folder, str(folder / "config.json"), field)


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 1 << 17), ("num_hidden_layers", 1000)])
def test_more_weights_than_the_files_can_hold(folder, field, value):
    """Within the bounds of every field, and still more than memory holds."""
    edit_config(folder, **{"hidden_size": 1 << 15, "intermediate_size": 1 << 17, field: value})
    refusal(folder, str(folder / "config.json"), "describes more than", "weights, its files hold")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_values_out_of_bounds_in_a_nested_part(folder, part):
    nested = VideoLlama2Config.from_pretrained(folder).to_dict()
    nested[part]["num_hidden_layers"] = 10**7
    (folder / "config.json").write_text(json.dumps(nested))
    refusal(folder, str(folder / "config.json"), part, "num_hidden_layers", "10000000")


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer_config.json", "generation_config.json"]
)
def test_json_that_is_nested_without_end(folder, name):
    (folder / name).write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)
    refusal(folder, str(folder / name), "nested too deep")


def test_a_tokenizer_that_is_nested_without_end(folder):
    (folder / "tokenizer.json").write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)
    refusal(folder, str(folder / "tokenizer.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("size", "large", "size 'large'"),
        ("size", {"shortest_edge": "336"}, "size '336'"),
        ("size", {"shortest_edge": 10**9}, "size 1000000000"),
        ("crop_size", {"height": 10**6, "width": 10**6}, "crop_size"),
        ("crop_size", {"height": 8, "width": 8}, "vision encoder takes"),
        ("image_mean", None, "image_mean"),
        ("image_mean", ["a", "b", "c"], "mean"),
        ("image_std", [0, 0, 0], "std"),
        ("resample", "cubic", "resample"),
        ("rescale_factor", "1/255", "rescale_factor"),
    ],
)
def test_preprocessing_out_of_bounds(folder, field, value, word):
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        shutil.copyfile(golden_dir() / "clip-tiny" / path.name, path)
    edit_json(path, **{field: value})
    refusal(folder, str(path), word)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}", "more than"),
    ],
)
def test_a_chat_template_without_end(folder, template, words):
    processor = load_pretrained_model(folder)[2]
    processor.tokenizer.chat_template = template
    processor.tokenizer.save_pretrained(folder)
    opened = VideoLlama2Processor.from_pretrained(folder)
    refusal([{"role": "user", "content": "What?"}], str(folder), words, load=opened.prompt)


# ------------------------------------------------------------------------------------------------ code


@pytest.fixture
def evil(folder, monkeypatch, tmp_path):
    """A checkpoint whose every part brings code; running any of it leaves a file behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in ("evil.py", "tokenizer_config.json"):
        shutil.copyfile(CASES / "remote_code_tokenizer" / name, folder / name)
    yield folder
    assert not list(tmp_path.rglob("REMOTE_CODE_RAN"))


AUTO_CLASSES = ("Config", "Model", "Processor", "ImageProcessor", "ModelForCausalLM")
AUTO_MAP = {f"Auto{name}": "evil.Evil" for name in AUTO_CLASSES}


def test_code_beside_a_tokenizer_is_never_run(evil):
    refusal(evil, str(evil / "tokenizer_config.json"), "auto_map", "never run")
    refusal(evil, str(evil / "tokenizer_config.json"), "auto_map", load=VideoLlama2Processor.from_pretrained)
    refusal(evil, str(evil / "tokenizer_config.json"), "auto_map", load=AutoProcessor.from_pretrained)


def test_code_beside_a_model_is_never_run(evil, golden):
    """Where this software has a class of its own, what the folder offers instead is no error."""
    shutil.copyfile(golden / "models" / evil.name / "tokenizer_config.json", evil / "tokenizer_config.json")
    edit_config(evil, auto_map=AUTO_MAP)
    (evil / "processor_config.json").write_text(json.dumps({"auto_map": AUTO_MAP, "processor_class": "Evil"}))
    _, model, _, _ = load_pretrained_model(evil)
    model.save_pretrained(evil / "again")
    nested = json.loads((evil / "again" / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        nested[part]["auto_map"] = AUTO_MAP
    (evil / "config.json").write_text(json.dumps(nested))
    load_pretrained_model(evil)


def test_code_beside_the_parts_of_a_model_is_never_run(evil, base):
    tower = evil.parent.parent / "clip-tiny"
    for path in (base, tower):
        edit_json(path / "config.json", auto_map=AUTO_MAP)
        shutil.copyfile(evil / "evil.py", path / "evil.py")
    build_from_parts(base, tower, mm_projector_type="linear")
    edit_json(base / "config.json", model_type="evil")
    refusal(base, str(base / "config.json"), "model_type 'evil'", load=parts_with(tower))
    edit_json(base / "config.json", model_type="qwen2")
    edit_json(tower / "config.json", model_type="evil")
    refusal(base, str(tower), "'evil'", load=parts_with(tower))


def test_training_does_not_run_code_of_others(evil, tmp_path, capsys):
    turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "This."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "0", "conversations": turns}]))
    options = {"model_path": evil, "data_path": tmp_path / "data.json", "output_dir": tmp_path / "out"}
    assert train.main([part for name, value in options.items() for part in (f"--{name}", str(value))]) == 2
    assert "auto_map names code" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ask", "worker"])
def test_commands_neither_run_nor_offer_code_of_others(evil, command, free_tcp_port):
    video = golden_dir() / "media" / "landscape_30fps_90f.mp4"
    commands = {
        "ask": ["videollama2", "ask", video, "What?", "--model-path", evil],
        "worker": ["videollama2.serve.model_worker", "--model-path", evil, "--no-register", "--port", free_tcp_port],
    }
    done = run_python(["-m", *commands[command]], input="y\n" * 9)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "auto_map names code beside the tokenizer" in lines[0]
    assert "Traceback" not in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr


@pytest.mark.slow
def test_every_opening_by_an_auto_class_rules_code_of_others_out():
    allowing = []
    for path in (ROOT / "videollama2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            opens = node.func.attr in ("from_pretrained", "from_config") and ast.unparse(node.func.value)[:4] == "Auto"
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (opens and "trust_remote_code" not in given) or given.get("trust_remote_code", "False") != "False":
                allowing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not allowing
