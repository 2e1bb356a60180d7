"""``videollama2 plan``: counted peaks are those of a real step, and a command that says what fits."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from videollama2 import cli
from videollama2.config import VideoLlama2Config
from videollama2.model.connectors import num_visual_tokens
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.packed_attention import keep_records_apart, packed_inputs
from videollama2.training.lora import add_lora
from videollama2.training.plan import Load, Planner, Way

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
LORA = {
    "adapted_parts": {"language_model"},
    "lora_r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_bias": "none",
    "lora_target": None,
}


@pytest.fixture(scope="module")
def planner():
    return Planner(VideoLlama2Config(**CONFIG))


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that are alive, as operations make them; ``known`` were there before."""

    def __init__(self, known):
        super().__init__()
        self.live, self.peak = WeakIdKeyDictionary(), 0
        for tensor in known:
            self.note(tensor)

    def note(self, tensor):
        storage = tensor.untyped_storage()
        self.live[storage] = storage.nbytes()
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, out)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def quantise(decoder):
    """Give the decoder's linear layers weights of 4 bits, as loading with ``--bits 4`` does."""
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            sizes = layer.in_features, layer.out_features
            small = Linear4bit(*sizes, bias=layer.bias is not None, compute_dtype=torch.float32, quant_type="nf4")
            small.load_state_dict(layer.state_dict())
            decoder.set_submodule(name, small.to("cpu"))


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


def measured(way, load=LOAD):
    """The largest number of bytes alive in the second step of a training on a CPU, without the batch's."""
    model = VideoLlama2ForConditionalGeneration(VideoLlama2Config(**CONFIG)).train()
    if way.quantised:
        quantise(model.model.language_model)
    if way.lora:
        add_lora(model, SimpleNamespace(**LORA, lora_rslora=False, lora_dora=False))
        model.lm_head.requires_grad_(False)
        model.model.mm_projector.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    if way.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    batch = {"use_cache": False, **batch_of(model, load)}

    def step():
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    gc.collect()
    states = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    with LiveBytes([*model.parameters(), *model.buffers(), *states]) as live:
        step()
    return live.peak


PACKED = Load(records=1, tokens=768, clips=3)


@pytest.mark.parametrize(
    ("way", "load"),
    [
        (Way("full", half=False), LOAD),
        (Way("recomputed", half=False, recompute=True), LOAD),
        (Way("packed", half=False), PACKED),
        pytest.param(Way("lora", half=False, lora=8), LOAD, marks=pytest.mark.slow),
        pytest.param(Way("qlora", half=False, lora=8, quantised=True), LOAD, marks=pytest.mark.slow),
        pytest.param(
            Way("qlora again", half=False, lora=8, quantised=True, recompute=True), LOAD, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_counts_the_peak_of_a_real_step(way, load, planner):
    assert planner.memory(way, load).peak == pytest.approx(measured(way, load), rel=0.1)


def test_slices_and_quantised_weights_are_smaller(planner):
    eight = Load(LOAD.records, LOAD.tokens, gpus=8)
    plain, two, three = (planner.memory(Way("", zero=stage), eight) for stage in (0, 2, 3))
    assert three.weights == pytest.approx(two.weights / 8) and two.optimizer == three.optimizer < plain.optimizer
    lora, four = (planner.memory(Way("", lora=8, quantised=bits), eight) for bits in (False, True))
    assert lora.weights - four.weights == pytest.approx(planner.linear * (2 - 0.516))
    once, again = (planner.seconds(Way("", recompute=value), eight, 1e12) for value in (False, True))
    assert once < again < once * 4 / 3


def test_command(capsys):
    assert cli.main(["plan", "--model", "videollama2-tiny", "--memory", "0.02", "--tokens", "100", "--batch", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {}
    for line in lines:
        if line.endswith(("  fits", "  too large")):
            way, rest = line[:34].strip(), line[34:].split()
            verdicts[way] = (float(rest[4]), rest[6])
    assert {verdict for _, verdict in verdicts.values()} == {"fits", "too"}
    assert all((peak < 0.02) == (verdict == "fits") for peak, verdict in verdicts.values())
    assert cli.main(["plan", "--model", "videollama2-tiny", "--tokens", "3"]) == 2
    assert "--tokens 3 has no room for text" in capsys.readouterr().err
    assert cli.main(["plan", "--model", "nowhere/no-model"]) == 2
    assert "nowhere/no-model" in capsys.readouterr().err
