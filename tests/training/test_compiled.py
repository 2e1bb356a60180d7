"""``--torch_compile``: layers of the decoder are compiled once, and learn what they learn without; Liger's kernels."""

import sys

import pytest
import torch
from torch._dynamo.utils import counters

from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.training.model.kernels import use_liger_kernels

from .helpers.runs import FEW_PARTS, LORA, copy_checkpoint, difference

OPTIONS = {
    **LORA,
    **FEW_PARTS,
    "lora_dropout": 0.0,
    "gradient_checkpointing": True,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "sample_answers": 1,
}


@pytest.mark.slow
def test_compiled_layers_learn_the_same_and_a_run_goes_on(run, tmp_path):
    """With LoRA, recomputation and batches of many lengths; the samples are answered by layers as they are written."""
    plain = run(**OPTIONS)
    torch._dynamo.reset()
    counters.clear()
    saving = {"save_strategy": "steps", "save_steps": 2, "torch_compile": True, "torch_compile_backend": "aot_eager"}
    whole = run(**OPTIONS, **saving)
    assert 1 <= counters["stats"]["unique_graphs"] <= 2  # for one record and for several, not for each layer or length
    assert whole.losses == pytest.approx(plain.losses, abs=1e-5)
    assert difference(plain.weights, whole.weights) < 1e-4
    copy_checkpoint(whole.folder / "checkpoint-2", tmp_path / "begun" / "checkpoint-2")
    resumed = run(folder=tmp_path / "begun", **OPTIONS, **saving)
    assert resumed.losses == whole.losses and difference(whole.weights, resumed.weights) == 0
    answers = [(each.folder / "sample_answers.jsonl").read_text() for each in (plain, whole)]
    assert answers[0] == answers[1]


def test_liger_kernels_replace_what_the_decoder_computes_and_not_the_loss(built, monkeypatch):
    """They compute on a GPU alone; which modules get them is the same everywhere."""
    monkey_patch = pytest.importorskip("liger_kernel.transformers.monkey_patch")
    from transformers.models.qwen2 import modeling_qwen2

    for name in ("apply_rotary_pos_emb", "Qwen2RMSNorm", "Qwen2MLP"):
        monkeypatch.setattr(modeling_qwen2, name, getattr(modeling_qwen2, name))
    model, _ = built(**LORA)
    names, forward = set(model.state_dict()), model.forward
    use_liger_kernels(model)
    layer = model.model.language_model.layers[0]
    assert set(model.state_dict()) == names and model.forward == forward
    assert layer.mlp.forward.__func__.__qualname__.startswith("LigerSwiGLU")
    assert layer.input_layernorm.forward.__func__.__qualname__.startswith("LigerRMSNorm")
    assert modeling_qwen2.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
    monkeypatch.delitem(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN, "qwen2")
    with pytest.raises(ConfigError, match="liger-kernel has no kernels for the qwen2 decoder"):
        use_liger_kernels(model)


def test_liger_kernels_need_their_package(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install liger-kernel"):
        use_liger_kernels(built()[0])
