"""What is no checkpoint is refused in one line that names the file and the rule."""

import shutil

import pytest

from tests.checkpoints.helpers import edit_config
from tests.conftest import golden_dir
from videollama2.checkpoints import build_from_parts, load_pretrained_model
from videollama2.config import VideoLlama2Config
from videollama2.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from videollama2.processing import VideoLlama2Processor


def test_unknown_path():
    with pytest.raises(CheckpointNotFoundError, match="/no/such/folder"):
        load_pretrained_model("/no/such/folder")


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_pretrained_model(folder)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_pretrained_model(folder)


def test_file_instead_of_folder(folder):
    with pytest.raises(CheckpointNotFoundError, match="is a file"):
        load_pretrained_model(folder / "config.json")


def test_damaged_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_pretrained_model(folder)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mm_projector_type": "magic"}, "unknown mm_projector_type 'magic'"),
        ({"model_type": "videollama2_gpt9"}, "model_type 'videollama2_gpt9'"),
        ({"mm_vision_tower": "no-such-tower"}, "no-such-tower"),
        ({"mm_vision_tower": None}, "names no vision encoder"),
        ({"num_frames": 0}, "num_frames"),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer -9"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature"),
    ],
)
def test_bad_configurations(folder, changes, rule):
    edit_config(folder, **changes)
    with pytest.raises((ConfigError, CheckpointError), match=rule):
        load_pretrained_model(folder)


def test_the_encoder_is_told_by_its_config_not_its_name(folder):
    """Published code takes a path with 'clip' in it for CLIP, whatever lies there."""
    shutil.copytree(golden_dir() / "siglip-tiny", folder.parent / "clips-siglip", copy_function=shutil.copyfile)
    edit_config(folder, mm_vision_tower="clips-siglip")
    config = VideoLlama2Config.from_pretrained(folder)
    assert config.vision_config.model_type == "siglip_vision_model"


def one_line(error):
    text = str(error.value)
    assert "\n" not in text, text
    return text


@pytest.mark.parametrize("stored", [..., None, ""])
def test_config_without_model_type(folder, stored):
    edit_config(folder, model_type=stored)
    for opening in (load_pretrained_model, VideoLlama2Config.from_pretrained, VideoLlama2Processor.from_pretrained):
        with pytest.raises((CheckpointError, ConfigError), match=rf"{folder.name}/config\.json names no model_type"):
            opening(folder)


def test_base_language_model_without_model_type(folder, base):
    edit_config(base, model_type=...)
    with pytest.raises(CheckpointError, match=r"base/config\.json names no model_type"):
        build_from_parts(base, golden_dir() / "clip-tiny", mm_projector_type="linear")


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0"}', "{", "[]", ""])
def test_broken_tokenizer(folder, content):
    """tokenizers raises a bare Exception, which no caller expects."""
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"{folder.name}/tokenizer\.json") as error:
        load_pretrained_model(folder)
    one_line(error)


def test_broken_tokenizer_config(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not JSON") as error:
        load_pretrained_model(folder)
    one_line(error)


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_missing_tokenizer(folder, kept):
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors", *kept):
            path.unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer: expected one of tokenizer.json") as error:
        load_pretrained_model(folder)
    one_line(error)


def test_class_token_in_a_grid(folder):
    edit_config(folder, mm_vision_select_feature="cls_patch")
    with pytest.raises(ConfigError, match="'cls_patch' keeps the class token, but stc_connector needs a square"):
        load_pretrained_model(folder)
