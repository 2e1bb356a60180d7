"""Questions while training: benchmarks and sample answers by the engine, on weights that learn the same without."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from videollama2 import train
from videollama2.checkpoints import load_checkpoint
from videollama2.errors import ConfigError, DataError
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.running.live_benchmark import LiveBenchmark
from videollama2.eval.running.run import EvaluationPlan, ModelChoice, run_evaluation
from videollama2.eval.running.runner import Runner
from videollama2.shapes.sets import write_set
from videollama2.training.asking.rollouts import QUESTION
from videollama2.training.asking.sample_questions import uint8_levels
from videollama2.training.data import RunData

from .helpers.runs import Run, difference, flags


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """A folder with the data of the built-in benchmark."""
    root = tmp_path_factory.mktemp("eval")
    write_set(root / "moving_shapes", videos=4, seed=5, questions_per_item=2)
    return root


@pytest.fixture
def asked(world, benchmarks):
    """Flags of a run that is asked all there is."""
    return {
        "eval_benchmarks": "moving_shapes",
        "eval_benchmarks_folder": benchmarks,
        "eval_steps": 1,
        "eval_questions": 2,
        "eval_data_path": world / "train.json",
        "sample_answers": 2,
    }


@pytest.mark.slow
def test_learns_the_same_to_the_bit(run, asked, benchmarks, world):
    """Dropout draws random numbers after the evaluation, and the answers are those of the weights of that moment."""
    changes = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.3, "freeze_vision_tower": True, "num_frames": 2}
    changes |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "mm_projector_type": "mlp2x_gelu"}
    without, told = run(**changes), run(**changes, **asked, report_to="tensorboard")
    assert without.losses == told.losses
    assert difference(without.weights, told.weights) == 0.0

    (marks, _) = [row for row in told.history if "eval_loss" in row]  # the run has two steps
    assert 0 <= marks["eval_moving_shapes_accuracy_strict"] <= marks["eval_moving_shapes_accuracy"] <= 1
    lines = [json.loads(line) for line in (told.folder / "sample_answers.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert {line["name"] for line in lines[:2]} == {line["name"] for line in lines[4:]}

    report = (told.folder / "report.md").read_text()
    assert "| question | right answer | before | after 2 steps |" in report
    assert "| moving shapes accuracy | moving shapes accuracy strict |" in report and lines[0]["wanted"] in report

    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = (told.folder / "runs").iterdir()
    events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()
    mark, _ = events.Scalars("eval/moving_shapes_accuracy")
    assert (mark.step, mark.value) == (1, pytest.approx(marks["eval_moving_shapes_accuracy"]))
    titles = {tag.partition("/")[0] for tag in events.Tags()["images"]}
    assert titles == {"samples", "moving_shapes"}


def signalled(method, done):
    """The method, with a signal whenever it is called; ``done`` is given what it is called with."""

    def wrapped(self, one):
        done.append(one)
        os.kill(os.getpid(), signal.SIGTERM)
        return method(self, one)

    return wrapped


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_which_is_made_up_for(run, world, parts, asked, tmp_path, capsys, monkeypatch):
    """First in the loss, then in the benchmark of the evaluation that is made up for; a part of each is done then."""
    options = {**asked, "num_frames": 2, "mm_projector_type": "mlp2x_gelu", "per_device_eval_batch_size": 1}
    whole = run(**options)
    argv = flags(world, parts, tmp_path / "out", **options)
    done = []
    for owner, name in ((train.VideoLlama2Trainer, "_for_evaluation"), (Runner, "_finish")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, signalled(getattr(owner, name), done))
            assert train.main(argv) == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert len(done) == 2 and told.count("stopped by SIGTERM after step 1") == 2
    assert train.main(argv) == 0
    resumed = Run(tmp_path / "out")
    marks, expected = (
        [{n: v for n, v in row.items() if n != "eval_runtime"} for row in each.history if "eval_loss" in row]
        for each in (resumed, whole)
    )
    assert marks == expected and len(marks) == 2
    assert difference(resumed.weights, whole.weights) == 0.0
    assert (resumed.folder / "sample_answers.jsonl").read_text() == (whole.folder / "sample_answers.jsonl").read_text()


def test_frames_are_those_that_were_read(parts):
    _, processor = load_checkpoint("videollama2-tiny")
    levels_TCHW = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    table_3V = torch.from_numpy(processor.transform.table)
    pixels_TCHW = torch.stack([table_3V[c][levels_TCHW[:, c].long()] for c in range(3)], dim=1)
    assert torch.equal(uint8_levels(pixels_TCHW, processor), levels_TCHW)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_record_that_cannot_be_read_gives_way_to_the_next(world, parts, tmp_path, policy):
    rows = json.loads((world / "train.json").read_text())
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((world / next(row["video"] for row in rows if "video" in row)).read_bytes()[:600])
    for place in (0, 1, len(rows) // 2):
        rows[place] = {key: value for key, value in rows[place].items() if key not in ("video", "image")}
        rows[place] |= {"video": str(broken)}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    changes = {"data_path": tmp_path / "rows.json", "data_folder": world, "on_bad_sample": policy}
    _, data_args, training_args = train.parse_arguments(flags(world, parts, tmp_path / "out", **changes))
    _, processor = load_checkpoint("videollama2-tiny")
    questions = RunData(data_args, training_args).questions(processor, "finetune", 2)
    asked = [sample[QUESTION].record.id for sample in questions.samples()]
    assert asked == [str(rows[place]["id"]) for place in (2, len(rows) // 2 + 1)]


@pytest.mark.slow
def test_shares_of_processes_make_the_same_marks(benchmarks, tmp_path):
    """Two processes ask half of the clips each; the numbers are those of ``eval run``."""
    model, processor = load_checkpoint("videollama2-tiny")
    exam = LiveBenchmark.open("moving_shapes", benchmarks)
    apart = [answer for rank in (1, 0) for answer in exam.ask(model, processor, rank, 2)]
    marks = exam.marks(apart)
    assert marks == exam.marks(exam.ask(model, processor))
    plan = EvaluationPlan(
        benchmark("moving_shapes"), benchmarks / "moving_shapes", tmp_path, ModelChoice("videollama2-tiny")
    )
    published = run_evaluation(replace(plan, progress=False), lambda text: None)
    assert published
    accuracy = {metric.protocol: metric.overall.value or 0.0 for metric in published.report.metrics}
    assert marks["moving_shapes_accuracy"] == pytest.approx(accuracy["published"] / 100)
    assert marks["moving_shapes_accuracy_strict"] == pytest.approx(accuracy["strict"] / 100)
    shown = exam.shown(apart, processor, 2)
    assert [each.wanted for each in shown] == [exam.items[place].options[exam.items[place].answer] for place in (0, 4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_benchmarks": "moving_shapes"}, "needs --eval_steps N"),
        ({"eval_benchmarks": "videochatgpt", "eval_steps": 1}, "a judge grades its answers"),
        ({"eval_benchmarks": "nothing", "eval_steps": 1}, "there is no benchmark 'nothing'"),
        ({"eval_questions": 3}, "--eval_questions 3 has no effect without --eval_benchmarks"),
        ({"eval_strategy": "steps"}, "needs --eval_data_path or --eval_benchmarks"),
        (
            {"eval_benchmarks": "moving_shapes", "eval_steps": 1, "deepspeed": "scripts/zero3.json"},
            "which ZeRO-3 and --fully_shard shard",
        ),
        ({"sample_answers": 2, "deepspeed": "scripts/zero3.json"}, "--sample_answers 2 needs whole weights"),
    ],
)
def test_what_cannot_be_asked_is_refused(run, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(**changes)


def test_missing_clips_are_told_before_training(run, benchmarks, tmp_path):
    shutil.copytree(benchmarks / "moving_shapes" / "mvbench" / "json", tmp_path / "moving_shapes" / "mvbench" / "json")
    with pytest.raises(DataError, match="media files of moving_shapes are missing, such as"):
        run(eval_benchmarks="moving_shapes", eval_benchmarks_folder=tmp_path, eval_steps=1)
