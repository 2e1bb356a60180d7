"""What a run tells about itself: log lines, loss.png, TensorBoard; and the arithmetic behind them."""

import sys

import pytest
import torch
from PIL import Image

from videollama2 import train
from videollama2.checkpoints import load_checkpoint
from videollama2.constants import IGNORE_INDEX
from videollama2.training.arguments import parse_arguments
from videollama2.training.model.build import build_model
from videollama2.training.reports.loss_plot import draw_curves, plot_losses, smoothed
from videollama2.training.reports.meter import BatchCounts, FlopCount, Meter, peak_flops
from videollama2.training.reports.report import kinds_of

from .helpers.runs import flags

pytestmark = pytest.mark.usefixtures("plotted")


@pytest.mark.slow
def test_each_line_of_a_step(run):
    result = run(mm_projector_lr=1e-3, vision_tower_lr=5e-4, warmup_steps=1, max_steps=3)
    for row in result.log:
        assert {"loss", "grad_norm", "learning_rate", "samples_per_second", "data_wait_share"} <= row.keys()
        assert row["visual_tokens_per_second"] + row["text_tokens_per_second"] > row["samples_per_second"] > 0
        assert 0 <= row["data_wait_share"] < 1
        shares = [row[f"{part}_share"] for part in ("encoder", "decoder", "optimizer")]
        assert min(shares) > 0 and sum(shares) + row["data_wait_share"] <= 1.01
        assert row["peak_memory_gb"] > 0.05
        assert row["mm_projector_lr"] == pytest.approx(row["learning_rate"] / 2)
        assert row["vision_tower_lr"] == pytest.approx(row["learning_rate"] / 4)
        assert "model_flops_utilisation" not in row  # there is no GPU
    assert max(row["learning_rate"] for row in result.log) == 2e-3
    left = [row["hours_left"] for row in result.log]
    assert left[0] > 0 == left[-1]
    report = (result.folder / "report.md").read_text().splitlines()
    first = next(row for row in result.log if row["step"] == 1)
    (line,) = [line for line in report if line.startswith("| 1 |")]
    assert line.startswith(f"| 1 | {first['loss']:.4g} |")
    (line,) = [line for line in report if line.startswith("| mixed.json | ")]
    assert "video " in line and "image " in line and line.endswith(" |") and "text " in line
    assert f"| torch | {torch.__version__} |" in report and "| `--max_steps` | 3 |" in report


def test_kinds_of_many_records(records):
    """Each record is looked at, or every n-th of very many."""
    shares = kinds_of(records)
    assert list(shares) == ["video", "image", "text"] and sum(shares.values()) == pytest.approx(1)
    assert shares["text"] == pytest.approx(2 / len(records))
    assert kinds_of([records[-1], records[0]] * 75_000) == {"text": 1.0}  # every second of 150 000


@pytest.mark.slow
def test_plot(run, world):
    pytest.importorskip("matplotlib")
    result = run(eval_data_path=world / "train.json", eval_strategy="steps", eval_steps=1)
    with Image.open(result.folder / "loss.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x1F, 0x5F, 0xA8), (0xD1, 0x49, 0x5B)} <= colours


def test_plot_without_losses(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1}]}')
    assert plot_losses(tmp_path) is None
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 2.0}]}')
    assert plot_losses(tmp_path).is_file()


def test_smoothing_keeps_a_constant_and_follows_a_fall():
    assert [value for _, value in smoothed([(i, 2.0) for i in range(50)])] == pytest.approx([2.0] * 50)
    falling = [(i, 100.0 - i) for i in range(100)]
    assert [value for _, value in smoothed(falling)] == pytest.approx([value for _, value in falling])  # without a lag
    noisy = [(i, float(i % 2)) for i in range(200)]
    assert all(0.4 < value < 0.6 for _, value in smoothed(noisy)[10:-10])


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log")])
def test_a_long_fall_is_drawn_on_a_logarithmic_scale(last, scale):
    pytest.importorskip("matplotlib")
    curve = [(step, 5.0 + (last - 5.0) * step / 99) for step in range(100)]
    (axis,) = draw_curves({"loss": curve, "loss, smoothed": curve}).axes
    assert axis.get_yscale() == scale
    (axis,) = draw_curves({"loss, smoothed": curve[:3]}).axes
    assert all(step == int(step) for step in axis.get_xticks())


@pytest.mark.slow
def test_a_run_without_matplotlib_loses_its_plot_only(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = run(max_steps=1).folder
    assert (folder / "model.safetensors").is_file() and not (folder / "loss.png").exists()
    assert "the losses are not plotted: loss.png needs matplotlib" in capsys.readouterr().err


@pytest.mark.slow
def test_tensorboard_by_default_where_it_is_installed(run, run_once):
    pytest.importorskip("tensorboard")
    folder = run(report_to=None, max_steps=1).folder
    assert list(folder.rglob("events.out.tfevents.*"))
    assert not list(run_once().folder.rglob("events.out.tfevents.*"))


@pytest.mark.slow
def test_half_precision_is_written_as_it_was_computed(run, parts):
    result = run(bf16=True, freeze_vision_tower=True, save_strategy="steps", save_steps=1)
    assert {tensor.dtype for tensor in result.weights.values()} == {torch.bfloat16}
    model, _ = load_checkpoint(result.folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    resumable, _ = load_checkpoint(result.folder / "checkpoint-2", dtype=torch.float32)
    assert any(
        not torch.equal(p, p.bfloat16().float()) for n, p in resumable.named_parameters() if "vision_tower" not in n
    )


@pytest.fixture
def built(world, parts, tmp_path):
    def make(**changes):
        return build_model(*parse_arguments(flags(world, parts, tmp_path / "out", **changes)))

    return make


def test_operations_of_a_step(built):
    model, _ = built(freeze_vision_tower=True, freeze_mm_mlp_adapter=True)
    count = FlopCount(model)
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters())
    head = model.lm_head.weight.numel()
    attention = 3 * 4 * 2 * 32 * 10 / 2
    text = BatchCounts(samples=1, text_tokens=10, labels=3)
    assert count.of_step(text) == 10 * (6 * decoder + attention) + 3 * 6 * head
    frozen = FlopCount(built(freeze_vision_tower=True, freeze_backbone=True)[0])
    assert frozen.of_step(text) == 10 * (4 * decoder + attention) + 3 * 4 * head
    encoder = sum(p.numel() for p in model.model.vision_tower.encoder.parameters())
    assert count.of_step(BatchCounts(samples=1, frames=1)) == 16 * 2 * encoder


def test_experts_count_where_tokens_are_sent(golden):
    """Mixtral: of each layer's experts, two work on a token."""
    model, _ = load_checkpoint(next((golden / "models").glob("mixtral*")))
    config = model.config.text_config
    layers = dict(model.model.language_model.layers.named_parameters())
    experts = sum(p.numel() for name, p in layers.items() if ".experts." in name)
    rest = sum(p.numel() for p in layers.values()) - experts
    assert config.num_local_experts > config.num_experts_per_tok == 2
    working = rest + experts * 2 / config.num_local_experts
    model.requires_grad_(False)
    assert FlopCount(model).decoder == 2 * working


def test_meter_counts_labels_tokens_and_frames(built, records):
    from videollama2.data.collator import TrainingCollator
    from videollama2.data.dataset import VideoInstructionDataset

    model, processor = built()
    dataset = VideoInstructionDataset(records, processor, 400)
    meter = Meter(model)
    kinds = [record.kinds for record in records]
    chosen = [kinds.index(["video"]), kinds.index(["image"]), kinds.index([]), len(records)]
    samples = [dataset[i] for i in chosen]
    meter.add(TrainingCollator(0)(samples))
    visual = dataset.media_lengths[chosen[0]] + dataset.media_lengths[chosen[1]]
    assert (meter.counts.samples, meter.counts.visual_tokens, meter.counts.frames) == (3, visual, 9)
    assert meter.counts.labels == sum(label != IGNORE_INDEX for s in samples for label in s["labels"][1:])
    assert meter.counts.text_tokens == sum(len(s["input_ids"]) for s in samples) - visual


def test_time_before_the_first_step_is_not_counted(built):
    meter = Meter(built()[0])

    def seconds():
        return meter.totals(torch.device("cpu"))[0, -2].item()

    meter.started -= 1000  # an engine is compiled
    meter.begin()
    assert seconds() < 500
    meter.started -= 1000  # a step that takes long
    meter.begin()
    assert seconds() > 500


def test_utilisation_is_the_share_of_what_all_devices_could_do(built):
    """Two processes, one second each, of devices that do ten times as much as was needed."""
    meter = Meter(built()[0])
    rows = torch.tensor(
        [[4, 50, 20, 100, 16, 9, 0, 0.1, 1.0, 2e9], [4, 70, 10, 80, 16, 7, 1, 0.3, 1.0, 3e9]], dtype=torch.float64
    )
    counts = {"samples": 8, "visual_tokens": 120, "sound_tokens": 30, "text_tokens": 180, "frames": 32, "labels": 16}
    needed = meter.flops.of_step(BatchCounts(**counts))
    entries = meter.rates(rows, peak=5 * needed)
    assert entries["model_flops_utilisation"] == pytest.approx(0.1)
    assert (entries["samples_per_second"], entries["visual_tokens_per_second"]) == (8, 120)
    assert (entries["sound_tokens_per_second"], entries["silent_videos"]) == (30, 1)
    assert (entries["data_wait_share"], entries["peak_memory_gb"]) == (pytest.approx(0.2), 3)
    assert "model_flops_utilisation" not in meter.rates(rows, peak=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_utilisation_on_a_gpu(run):
    shares = [row["model_flops_utilisation"] for row in run(bf16=True).log]
    assert all(0 < share < 1 for share in shares)


def test_a_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu")) is None


def test_processes_on_a_machine_without_gpu_hear_of_each_other(world, parts, tmp_path):
    """Without use_cpu, accelerate would take each process for a run of its own."""
    if torch.accelerator.is_available():
        pytest.skip("this machine has a GPU")
    assert train.parse_arguments(flags(world, parts, tmp_path))[2].use_cpu
