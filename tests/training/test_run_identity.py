"""A run is what it was started with: the same command goes on or has nothing to do, any other one is refused."""

import json
import multiprocessing
import shlex
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.helpers.forked import end_all, receive, start_function
from videollama2 import train
from videollama2.checkpoints.files import ADAPTER_CONFIG, RUN_FILE
from videollama2.errors import CheckpointError, ConfigError
from videollama2.training.arguments import parse_arguments
from videollama2.training.reports.outcome import closing_words
from videollama2.training.run.folder import LOCK_FILE, locked
from videollama2.training.run.identity import RunIdentity

from .helpers.runs import copy_checkpoint, flags

pytestmark = pytest.mark.usefixtures("plotted")

SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def finished(world, parts, tmp_path_factory) -> Path:
    """A run of four steps with two checkpoints; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.train(*parse_arguments(flags(world, parts, folder, **SAVING)))
    return folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def refusal(argv: list[str], capsys) -> str:
    assert train.main(argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_finished_run_called_again_says_so_and_changes_no_file(finished, world, parts, capsys):
    before = contents(finished)
    assert train.main(flags(world, parts, finished, **SAVING)) == 0
    out = capsys.readouterr().out
    assert "this run is finished already, so nothing was done" in out
    assert f'videollama2 ask VIDEO "What happens here?" --model-path {finished}' in out
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 5e-2}, "--learning_rate 0.05 (was 0.002)"),
        ({"weight_decay": 0.3}, "--weight_decay 0.3 (was 0.0)"),
        ({"max_steps": 6}, "--max_steps 6 (was 4)"),
        ({"seed": 7}, "--seed 7 (was 42)"),
        ({"per_device_train_batch_size": 2}, "--per_device_train_batch_size 2 (was 4)"),
        ({"gradient_accumulation_steps": 2}, "--gradient_accumulation_steps 2 (was 1)"),
        ({"data_path": "train.json"}, "mixed.json)"),
        ({"lora_enable": True, "freeze_vision_tower": True}, "--lora_enable True (was False)"),
    ],
)
def test_another_run_is_refused_by_what_differs(finished, world, parts, capsys, changes, words):
    before = contents(finished)
    if "data_path" in changes:
        changes = {"data_path": world / changes["data_path"]}
    line = refusal(flags(world, parts, finished, **{**SAVING, **changes}), capsys)
    assert words in line and str(finished) in line and "--overwrite_output_dir" in line
    assert contents(finished) == before


def test_data_and_weights_are_told_by_their_content(finished, world, parts, tmp_path, capsys):
    data, models = tmp_path / "mixed.json", tmp_path / "parts"
    shutil.copy(world / "mixed.json", data)
    shutil.copytree(parts, models)
    same = {**SAVING, "data_path": data, "model_path": models / "llm"}
    argv = flags(world, parts, finished, **same)
    former = RunIdentity.from_json(json.loads((finished / RUN_FILE).read_text())["identity"])
    assert RunIdentity.of(*parse_arguments(argv)).differences(former) == []
    data.write_text(data.read_text().replace("yes", "no"))
    weights = models / "llm" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    line = refusal(argv, capsys)
    assert f"--data_path {data}" in line
    assert f"--model_path {models / 'llm'}" in line
    # The file of that name with other content is what this is about.
    copy_checkpoint(finished / "checkpoint-2", tmp_path / "own" / "checkpoint-2")
    record = tmp_path / "own" / "checkpoint-2" / RUN_FILE
    record.write_text(record.read_text().replace(str(world / "mixed.json"), str(data)))
    assert f"--data_path {data} (has other content)" in refusal(
        flags(world, parts, tmp_path / "own", **{**SAVING, "data_path": data}), capsys
    )


def test_what_does_not_change_the_result_may_differ(finished, world, parts):
    free = {"logging_steps": 7, "save_steps": 1, "dataloader_num_workers": 1, "run_name": "another", "tf32": False}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    former = RunIdentity.from_json(json.loads((finished / RUN_FILE).read_text())["identity"])
    now = RunIdentity.of(*parse_arguments(flags(world, parts, finished, **{**SAVING, **free, **split})))
    assert now.differences(former) == []


def test_the_commands_at_the_end_can_be_copied(tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / ADAPTER_CONFIG).touch()
    _, ask, merge = map(shlex.split, closing_words(folder, "my base").replace("Next:", "").splitlines())
    assert ask[-2:] == ["--model-path", str(folder)]
    assert merge[2:4] == [str(folder), f"{folder}-merged"]


def test_a_checkpoint_of_another_run_is_refused(finished, world, parts, tmp_path, capsys):
    """Learning rates and the order of data come from the checkpoint: other flags would be given in vain."""
    asked = {**SAVING, "resume_from_checkpoint": finished / "checkpoint-2", "max_steps": 6}
    line = refusal(flags(world, parts, tmp_path / "own", learning_rate=5e-2, **asked), capsys)
    assert (
        "checkpoint-2: its run has other flags or data: --learning_rate 0.05 (was 0.002). Give the same flags" in line
    )
    assert "max_steps" not in line, "a run may be made longer"
    both = flags(world, parts, tmp_path / "own", overwrite_output_dir=True, **asked)
    assert "--overwrite_output_dir starts over, --resume_from_checkpoint goes on" in refusal(both, capsys)


def test_a_reward_is_told_by_the_content_of_its_file(world, parts, tmp_path):
    file = tmp_path / "rewards.py"
    options = {"objective": "grpo", "reward": f"{file}:score"}

    def identity() -> RunIdentity:
        return RunIdentity.of(*parse_arguments(flags(world, parts, tmp_path / "out", **options)))

    file.write_text("def score(record, answer):\n    return 1\n")
    first = identity()
    assert identity().differences(first) == []
    file.write_text("def score(record, answer):\n    return 2\n")
    (difference,) = identity().differences(first)
    assert difference.startswith(f"--reward {file}:score (sha256:")


@pytest.mark.slow
def test_overwriting_begins_anew(finished, world, parts, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(finished, folder)
    (folder / "notes.txt").write_text("somebody's own")
    options = {**SAVING, "max_steps": 2, "save_strategy": "no", "overwrite_output_dir": True}
    train.train(*parse_arguments(flags(world, parts, folder, **options)))
    assert not list(folder.glob("checkpoint-*"))
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
    assert (folder / "notes.txt").is_file()
    assert not (folder / LOCK_FILE).exists()


@pytest.mark.slow
def test_a_run_that_left_nothing_binds_nobody(finished, world, parts, tmp_path):
    """It was killed before its first checkpoint: other flags are what one tries then."""
    (tmp_path / "own").mkdir()
    record = json.loads((finished / RUN_FILE).read_text())
    (tmp_path / "own" / RUN_FILE).write_text(json.dumps({"identity": record["identity"]}))
    options = {**SAVING, "max_steps": 1, "learning_rate": 1e-5}
    assert train.main(flags(world, parts, tmp_path / "own", **options)) == 0


def test_folders_nothing_is_known_of_are_left_alone(finished, world, parts, tmp_path, capsys):
    model, old = tmp_path / "model", tmp_path / "old"
    model.mkdir()
    shutil.copy(finished / "model.safetensors", model)
    assert "holds model.safetensors" in refusal(flags(world, parts, model, **SAVING), capsys)
    copy_checkpoint(finished / "checkpoint-2", old / "checkpoint-2")
    (old / "checkpoint-2" / RUN_FILE).unlink()
    assert "--resume_from_checkpoint" in refusal(flags(world, parts, old, **SAVING), capsys)


@pytest.mark.slow
def test_a_deleted_result_is_written_again(finished, world, parts, tmp_path, capsys):
    folder = tmp_path / "own"
    shutil.copytree(finished, folder)
    (folder / "model.safetensors").unlink()
    assert train.main(flags(world, parts, folder, **SAVING)) == 0
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


# ------------------------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"])
@pytest.mark.parametrize("harm", ["cut", "gone", "wrong"])
def test_a_damaged_checkpoint_is_named_with_the_older_one(finished, world, parts, tmp_path, capsys, name, harm):
    folder = tmp_path / "own"
    for step in (2, 4):
        copy_checkpoint(finished / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    path = folder / "checkpoint-4" / name
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if harm == "cut" else bytes(len(content)))
    line = refusal(flags(world, parts, folder, **SAVING), capsys)
    assert f"{folder / 'checkpoint-4'}: cannot be read ({name}" in line
    assert f"--resume_older True resumes from {folder / 'checkpoint-2'}" in line


@pytest.mark.slow
def test_going_on_from_an_older_checkpoint_ends_the_same(run, finished, tmp_path):
    folder = tmp_path / "own"
    for step in (2, 4):
        copy_checkpoint(finished / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    weights = folder / "checkpoint-4" / "optimizer.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF  # size and table of contents stay right
    weights.write_bytes(content)
    resumed = run(folder=folder, resume_older=True, **SAVING)
    assert (resumed.folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


# ---------------------------------------------------------------------------------------------------- lock


def hold(folder: Path, out: Connection) -> None:
    """Own the folder until killed."""
    with locked(folder):
        out.send("held")
        signal.pause()


@pytest.mark.slow
def test_a_second_training_in_one_folder_is_refused(world, parts, tmp_path, capsys):
    folder = tmp_path / "out"
    ours, theirs = multiprocessing.Pipe()
    holder = start_function(hold, folder, theirs)
    theirs.close()
    try:
        assert receive(ours) == "held"
        line = refusal(flags(world, parts, folder), capsys)
        assert f"{folder} is in use: process {holder.pid} on " in line and "is training into it" in line
    finally:
        end_all([holder], timeout_s=0)
    assert (folder / LOCK_FILE).is_file()  # what a killed process leaves holds nobody up
    with locked(folder):
        pass
    assert not (folder / LOCK_FILE).exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written to"), locked(tmp_path / "file" / "out"):
        pass


def test_damaged_record(finished, world, parts, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "own")
    (tmp_path / "own" / RUN_FILE).write_text("{")
    assert f"{RUN_FILE}: is not a record of a run" in refusal(flags(world, parts, tmp_path / "own", **SAVING), capsys)


def test_identity_survives_a_file(finished, world, parts):
    identity = RunIdentity.of(*parse_arguments(flags(world, parts, finished, **SAVING)))
    assert RunIdentity.from_json(json.loads(json.dumps(identity.to_json()))).differences(identity) == []
    with pytest.raises(ConfigError, match="--weight_decay 0.0"):
        identity.check(RunIdentity(**{**identity.to_json(), "flags": {**identity.flags, "weight_decay": 1}}), finished)
