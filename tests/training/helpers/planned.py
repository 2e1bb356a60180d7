"""Steps of training at small shapes, whose largest memory is compared with what ``videollama2 plan`` counts."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdRef

from tests.conftest import ROOT
from videollama2.config import VideoLlama2Config
from videollama2.model.connectors import num_visual_tokens
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.packed_attention import keep_records_apart, packed_inputs
from videollama2.training.distributed.fully_shard import shard
from videollama2.training.distributed.sharding import encode_uniformly
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.plan.planner import Load

CONFIG = {
    "text_config": {
        "model_type": "qwen2",
        "vocab_size": 2000,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
    "mm_vision_tower": "clip",
    "mm_projector_type": "stc_connector",
    "num_frames": 8,
}
LOAD = Load(records=3, tokens=256)


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that are alive, as operations make them; ``known`` were there before."""

    def __init__(self, known):
        super().__init__()
        self.sizes, self.total, self.peak = {}, 0, 0
        for tensor in known:
            self.note(tensor)

    def note(self, tensor):
        storage = tensor.untyped_storage()
        key, size = WeakIdRef(storage, self._forget), storage.nbytes()
        # A storage may have been resized. One that is known keeps its first key, which is told when the storage dies.
        change = size - self.sizes.get(key, 0)
        self.sizes[key] = size
        self.total += change
        return tensor

    def _forget(self, key):
        self.total -= self.sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, out)
        self.peak = max(self.peak, self.total)
        return out


def batch_of(model, load):
    """Records with a clip each; or packed rows of several such records."""
    visual = num_visual_tokens("stc_connector", 8, model.config.patches_per_side)
    ids = torch.randint(5, 1900, (load.records * load.clips, load.tokens // load.clips))
    ids[:, 1 : 1 + visual] = model.config.video_token_id
    labels = ids.masked_fill(ids == model.config.video_token_id, -100)
    clips = torch.randn(len(ids), 8, 3, 56, 56)
    packed = {}
    if load.clips > 1:
        keep_records_apart(model.get_decoder(), ids.shape[1])
        packed = packed_inputs([ids.shape[1]] * load.clips)
    rows = (part.reshape(load.records, load.tokens) for part in (ids, labels))
    return dict(zip(("input_ids", "labels"), rows, strict=True), pixel_values_videos=clips, **packed)


def main(argv):
    """Measure a step whose weights are shared among processes; the first one writes its bytes to a file.

    Args:
        argv: "2" or "3", a stage of ZeRO, or "fully_shard"; "" or "recomputed"; the file.
    """
    kind, recomputed, file = argv
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = VideoLlama2ForConditionalGeneration(VideoLlama2Config(**CONFIG)).train()
    tower, _ = model.model.eyes()
    tower.requires_grad_(False)
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    encode_uniformly(model)
    batch = {"use_cache": False, **batch_of(model, LOAD)}
    step = (_fully_sharded if kind == "fully_shard" else _under_zero)(model, batch, kind)
    step()
    gc.collect()
    given = {id(value) for value in batch.values()}
    known = [value for value in gc.get_objects() if torch.is_tensor(value) and id(value) not in given]
    slices = [value.to_local() if isinstance(value, DTensor) else value for value in known]
    with LiveBytes([value for value in slices if value.device.type == "cpu" and value.layout == torch.strided]) as live:
        step()
    if torch.distributed.get_rank() == 0:
        Path(file).write_text(str(live.peak))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 0


def _under_zero(model, batch, stage):
    """A step under DeepSpeed, with the buckets that the trainer gives the shipped configuration."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    from videollama2.training.stale_locks import skip_shared_memory_reduction

    skip_shared_memory_reduction()
    zero = json.loads((ROOT / "scripts" / f"zero{stage}.json").read_text())["zero_optimization"]
    width = model.config.hidden_size
    zero |= {name: int(width**2 * share) for name, share in SHARES.items() if zero.get(name) == "auto"}
    if stage == "3":
        zero["stage3_param_persistence_threshold"] = 10 * width
    settings = {
        "train_micro_batch_size_per_gpu": LOAD.records,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    model.to(torch.bfloat16)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, fused=True)
    # DeepSpeed takes parameters, although it says that it takes a module.
    learned: Any = learning
    engine, *_ = deepspeed.initialize(model=model, model_parameters=learned, optimizer=optimizer, config=settings)

    def step():
        engine.backward(engine(**batch).loss)
        engine.step()

    return step


SHARES = {"reduce_bucket_size": 1, "stage3_prefetch_bucket_size": 0.9}
"""What transformers puts in place of "auto", in squares of the decoder's width."""


def _fully_sharded(model, batch, kind):
    shard(model, TrainingArguments(output_dir="unused", use_cpu=True, bf16=True, report_to=["none"]))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
