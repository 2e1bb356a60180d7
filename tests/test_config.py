"""VideoLlama2Config finds the vision encoder a checkpoint names, with the options the checkpoint was asked for with."""

import json
import shutil

import pytest

from tests.conftest import golden_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.config import VideoLlama2Config
from videollama2.errors import CheckpointNotFoundError
from videollama2.processing import VideoLlama2Processor

QWEN = golden_dir() / "models" / "qwen2-stc_connector-clip"


def cached(cache, name, files, commit="0" * 40, ref="main"):
    """Put a repository into a hub cache, as a download leaves it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(files, repository / "snapshots" / commit, copy_function=shutil.copyfile)
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    return repository / "snapshots" / commit


@pytest.fixture
def checkpoint(tmp_path):
    """A flat checkpoint whose encoder is a hub repository that only ``tmp_path/cache`` holds."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(QWEN, folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "somebody/encoder"}))
    for path in folder.glob("preprocessor_config.json"):
        path.unlink()
    cached(tmp_path / "cache", "somebody/encoder", golden_dir() / "clip-tiny")
    return folder


def test_hub_options_reach_the_encoder(checkpoint, tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="mm_vision_tower 'somebody/encoder'"):
        VideoLlama2Config.from_pretrained(checkpoint)
    hub = {"cache_dir": tmp_path / "cache", "local_files_only": True, "token": "t"}
    assert VideoLlama2Config.from_pretrained(checkpoint, **hub).mm_hidden_size == 32
    assert VideoLlama2Processor.from_pretrained(checkpoint, **hub).transform
    assert load_checkpoint(checkpoint, **hub)[0].config.mm_hidden_size == 32


def test_a_revision_is_the_checkpoints_not_the_encoders(checkpoint, tmp_path):
    cached(tmp_path / "cache", "somebody/video", checkpoint, commit="1" * 40, ref="v2")
    hub = {"cache_dir": tmp_path / "cache", "local_files_only": True, "revision": "v2"}
    model, processor = load_checkpoint("somebody/video", **hub)
    assert model.config.mm_vision_tower == "somebody/encoder"
    assert processor.transform
