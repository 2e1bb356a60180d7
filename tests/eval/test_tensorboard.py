"""``--tensorboard``: what TensorBoard's own reader finds in the folder."""

import json

import pytest

from videollama2.eval.__main__ import main
from videollama2.eval.report.tensorboard import training_step

pytest.importorskip("tensorboard")


@pytest.mark.parametrize(
    ("model", "step"),
    [("out/checkpoint-500", 500), ("out/checkpoint-12/", 12), ("VideoLLaMA2-7B", 0), ("checkpoint-5-merged", 0)],
)
def test_the_step_is_that_of_the_checkpoint(model, step):
    assert training_step(model) == step


def test_numbers_are_found_by_tensorboard(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [{"vid": f"{n}.mp4", "task_type": "Action Count" if n else "Pose", "pred": n % 2, "gt": 0} for n in range(4)]
    (tmp_path / "merge.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--benchmark", "mvbench", "--tensorboard", str(tmp_path / "logs"), "--no-progress")
    assert main(["score", str(tmp_path / "merge.json"), *options]) == 0
    found = EventAccumulator(str(tmp_path / "logs")).Reload()
    values = {name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert values == {
        "mvbench/accuracy, published": [(0, 50.0)],
        "mvbench, accuracy, published/Pose": [(0, 100.0)],
        "mvbench, accuracy, published/Action Count": [(0, pytest.approx(100 / 3))],
    }
    (tmp_path / "file").write_text("")
    options = ("--benchmark", "mvbench", "--tensorboard", str(tmp_path / "file" / "logs"), "--no-progress")
    assert main(["score", str(tmp_path / "merge.json"), *options]) == 2
    assert "cannot be written" in capsys.readouterr().err
