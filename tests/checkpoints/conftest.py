"""A writable published checkpoint and a bare language model of the same sizes."""

import shutil
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from tests.checkpoints.helpers import QWEN
from tests.conftest import decoder_sizes, golden_dir


@pytest.fixture
def folder(tmp_path):
    """A writable copy of a published checkpoint, its vision encoder beside it."""
    for name in (f"models/{QWEN}", "clip-tiny"):
        shutil.copytree(golden_dir() / name, tmp_path / name, copy_function=shutil.copyfile)
    target = tmp_path / "models" / QWEN
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755)
    return target


@pytest.fixture
def base(tmp_path):
    """A bare language model of the same sizes, with weights of its own."""
    torch.manual_seed(5)
    sizes: dict[str, Any] = decoder_sizes(
        vocab_size=483, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    config = Qwen2Config(**sizes, max_position_embeddings=512, tie_word_embeddings=False, eos_token_id=2)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(golden_dir() / "tokenizers" / "qwen2").save_pretrained(tmp_path / "base")
    return tmp_path / "base"
