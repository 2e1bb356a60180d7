"""``videollama2 plan``: counted peaks are those of a real step, and a command that says what fits."""

import gc

import pytest
import torch

from tests.helpers.forked import run_ranks
from videollama2 import cli
from videollama2.config import VideoLlama2Config
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.model.lora import add_lora
from videollama2.training.plan.counted_model import Matrices
from videollama2.training.plan.planner import Load, Planner, Way

from .helpers.planned import CONFIG, LOAD, LiveBytes, batch_of


@pytest.fixture(scope="module")
def planner():
    return Planner(VideoLlama2Config(**CONFIG))


def quantise(decoder):
    """Give the decoder's linear layers weights of 4 bits, as loading with ``--bits 4`` does."""
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            sizes = layer.in_features, layer.out_features
            small = Linear4bit(*sizes, bias=layer.bias is not None, compute_dtype=torch.float32, quant_type="nf4")
            small.load_state_dict(layer.state_dict())
            decoder.set_submodule(name, small.to("cpu"))


def measured(way, load=LOAD):
    """The largest number of bytes alive in the second step of a training on a CPU, without the batch's."""
    model = VideoLlama2ForConditionalGeneration(VideoLlama2Config(**CONFIG)).train()
    if way.quantised:
        quantise(model.model.language_model)
    if way.lora:
        add_lora(model, Matrices(way.lora, frozenset(way.parts)))
        model.model.mm_projector.requires_grad_(True)
    else:
        frozen = (model.model.language_model, model.lm_head) if way.connector_alone else ()
        for part in (model.model.vision_tower, *frozen):
            part.requires_grad_(False)
    if way.half:
        for parameter in model.parameters():  # of what is frozen, as in training
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)
    if way.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    batch = {"use_cache": False, **batch_of(model, load)}

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=way.half):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    gc.collect()
    states = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    with LiveBytes([*model.parameters(), *model.buffers(), *states]) as live:
        step()
    return live.peak


ADAPTED = {"lora": 8, "dropout": False, "half": False}
BOTH = ("language_model", "vision_tower")
PACKED = Load(records=1, tokens=768, clips=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "load"),
    [
        (Way("full", half=False), LOAD),
        (Way("recomputed", half=False, recompute=True), LOAD),
        (Way("packed", half=False), PACKED),
        (Way("connector", connector_alone=True), LOAD),
        (Way("bfloat16", recompute=True), LOAD),
        (Way("lora", **ADAPTED), LOAD),
        (Way("lora bfloat16", **(ADAPTED | {"half": True})), LOAD),
        (Way("lora in the encoder", parts=BOTH, **ADAPTED), LOAD),
        (Way("qlora", quantised=True, **ADAPTED), LOAD),
        (Way("qlora again", quantised=True, recompute=True, **ADAPTED), LOAD),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_counts_the_peak_of_a_real_step(way, load, planner):
    assert planner.memory(way, load).peak == pytest.approx(measured(way, load), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [Way("2", zero=2), Way("3", zero=3), Way("fully_shard", fully_shard=True)], ids=lambda way: way.name
)
def test_counts_the_peak_of_two_processes(way, planner, tmp_path):
    if way.zero:
        pytest.importorskip("deepspeed")
    file, log = tmp_path / "bytes", tmp_path / "log"
    assert run_ranks([way.name, "", str(file)], 2, log, module="tests.training.helpers.planned") == 0, log.read_text()
    assert planner.memory(way, Load(LOAD.records, LOAD.tokens, gpus=2)).peak == pytest.approx(
        int(file.read_text()), rel=0.1
    )


def test_slices_and_quantised_weights_are_smaller(planner):
    eight = Load(LOAD.records, LOAD.tokens, gpus=8)
    plain, two, three = (planner.memory(Way("", zero=stage), eight) for stage in (0, 2, 3))
    assert three.weights == pytest.approx(two.weights / 8) and two.optimizer == three.optimizer < plain.optimizer
    lora, four = (planner.memory(Way("", lora=8, quantised=bits), eight) for bits in (False, True))
    assert lora.weights - four.weights == pytest.approx(planner.linear * (2 - 0.516))
    once, again = (planner.seconds(Way("", recompute=value), eight, 1e12) for value in (False, True))
    assert once < again < once * 4 / 3


@pytest.mark.slow
def test_command(capsys):
    assert cli.main(["plan", "--model", "videollama2-tiny", "--memory", "0.02", "--tokens", "100", "--batch", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {}
    for line in lines:
        if line.endswith(("  fits", "  too large")):
            way, rest = line[:34].strip(), line[34:].split()
            weights, optimizer, buffers, gradients, activations, peak, _ = map(float, rest[:7])
            parts = weights + optimizer + buffers + max(gradients, activations)
            assert peak == pytest.approx(parts, rel=0.02)  # three digits of each are printed
            verdicts[way] = (peak, rest[7])
    assert {verdict for _, verdict in verdicts.values()} == {"fits", "too"}
    assert all((peak < 0.02) == (verdict == "fits") for peak, verdict in verdicts.values())
    (advice,) = [line for line in lines if line.startswith("The fastest that fit: ")]
    named = advice.removeprefix("The fastest that fit: ").removesuffix(".").split("; ")
    assert {verdicts[name][1] for name in named} == {"fits"} and len(named) == len({n.split(",")[0] for n in named})
    assert cli.main(["plan", "--model", "videollama2-tiny", "--tokens", "3"]) == 2
    assert "--tokens 3 leaves no room for text" in capsys.readouterr().err
    assert cli.main(["plan", "--model", "nowhere/no-model"]) == 2
    assert "nowhere/no-model" in capsys.readouterr().err
