"""``--tensorboard`` and ``--wandb``: what the readers of these two find."""

import json

import pytest

from videollama2.errors import MissingDependencyError
from videollama2.eval.__main__ import main
from videollama2.eval.report import curves
from videollama2.eval.report.curves import check_writers_installed, training_step


@pytest.fixture
def answers(tmp_path):
    """A file of the published code with four answers, of which two are right."""
    rows = [{"vid": f"{n}.mp4", "task_type": "Action Count" if n else "Pose", "pred": n % 2, "gt": 0} for n in range(4)]
    (tmp_path / "merge.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(tmp_path / "merge.json"), "--benchmark", "mvbench", "--no-progress"]


VALUES = {
    "mvbench/accuracy, published": 50.0,
    "mvbench, accuracy, published/Pose": 100.0,
    "mvbench, accuracy, published/Action Count": pytest.approx(100 / 3),
}


@pytest.mark.parametrize(
    ("model", "step"),
    [("out/checkpoint-500", 500), ("out/checkpoint-12/", 12), ("VideoLLaMA2-7B", 0), ("checkpoint-5-merged", 0)],
)
def test_the_step_is_that_of_the_checkpoint(model, step):
    assert training_step(model) == step


def test_numbers_are_found_by_tensorboard(tmp_path, answers, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["score", *answers, "--tensorboard", str(tmp_path / "logs")]) == 0
    found = EventAccumulator(str(tmp_path / "logs")).Reload()
    values = {name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert values == {name: [(0, value)] for name, value in VALUES.items()}
    (tmp_path / "file").write_text("")
    assert main(["score", *answers, "--tensorboard", str(tmp_path / "file" / "logs")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_numbers_are_logged_to_wandb(tmp_path, answers, monkeypatch):
    """W&B keeps a run that is made without an account in a file of records, whose texts stand there as they are."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "RUN_ID": "mine"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        assert main(["score", *answers, "--wandb", "shapes"]) == 0
    finally:
        wandb.teardown()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-mine.wandb")
    content = path.read_bytes()
    for text in (*VALUES, "checkpoint", "shapes", "evaluation", "33.33", "merge.json (published code)"):
        assert text.encode() in content, text


def test_a_missing_package_is_told_before_the_first_question(answers, monkeypatch, capsys):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    assert main(["score", *answers, "--wandb", "shapes"]) == 2
    assert capsys.readouterr().err.strip().endswith("--wandb needs wandb: pip install wandb")
    with pytest.raises(MissingDependencyError, match="--tensorboard needs tensorboard"):
        check_writers_installed(tensorboard=answers[0], wandb=None)
    check_writers_installed(None, None)
