"""Schedulers: the Slurm script with stand-ins for Slurm's programs, and the SkyPilot file."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.forked import killed_after

SBATCH = ROOT / "scripts" / "slurm" / "finetune.sbatch"
SRUN = """#!/usr/bin/env bash
# Runs the command once per node and hands signals on, as srun does; "nodes begun" when it can.
while [ "${1#--}" != "$1" ]; do echo "srun $1"; shift; done
pids=()
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
    SLURM_NODEID=$node SLURM_GPUS_ON_NODE=8 "$@" & pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR1
echo "nodes begun"
code=0
for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || code=$?; done
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*"; fi
"""
TRAINING = """
echo "rank $RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT, $NPROC_PER_NODE processes, flags $*"
[ "${WAITS:-}" ] || exit "${CODE:-0}"
trap 'exit 138' USR1
echo waiting
while true; do sleep 0.05; done
"""


@pytest.fixture
def slurm(tmp_path: Path):
    """``slurm(*argv, **variables)``: the running job script."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    (tmp_path / "train.sh").write_text(TRAINING)
    names = ("WORLD_SIZE", "NPROC_PER_NODE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    own = {**job, "SLURM_SUBMIT_DIR": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}

    def start(*argv: str, **variables: str) -> subprocess.Popen:
        env = {**clean, **own, **variables}
        return subprocess.Popen(
            ["bash", str(SBATCH), *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def test_every_node_gets_its_number_and_one_meeting_place(slurm) -> None:
    out, told = slurm("train.sh", "--lora_r", "8").communicate(timeout=60)
    lines = sorted(line for line in out.splitlines() if line.startswith("rank"))
    place = "of 2 at node7:23456, 8 processes, flags --lora_r 8"
    assert lines == [f"rank 0 {place}", f"rank 1 {place}"], told
    assert "srun --kill-on-bad-exit=1" in out


def test_a_run_whose_time_ends_is_requeued(slurm) -> None:
    job = slurm("train.sh", WAITS="1")
    to_come = ["waiting\n", "waiting\n", "nodes begun\n"]
    with killed_after(job):
        for line in job.stdout:
            if line in to_come:
                to_come.remove(line)
            if not to_come:
                break
        job.send_signal(signal.SIGUSR1)
        out, told = job.communicate(timeout=60)
    assert job.returncode == 138 and "scontrol requeue 123456" in out and "goes back into the queue" in told


def test_a_run_that_fails_is_not_requeued(slurm) -> None:
    job = slurm("train.sh", CODE="3")
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 3 and "requeue" not in out
    job = slurm("no_such_script.sh")
    assert "there is no script no_such_script.sh" in job.communicate(timeout=60)[1] and job.returncode == 2


def test_directives_are_those_that_slurm_reads() -> None:
    """Slurm stops reading at the first line that is a command, and knows these options (``sbatch --help``)."""
    known = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue"}
    known |= {"open-mode", "output"}
    lines = SBATCH.read_text().splitlines()
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {n: line for n, line in enumerate(lines) if line.startswith("#SBATCH")}
    assert directives and max(directives) < first_command
    for line in directives.values():
        found = re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)
        assert found and found[1] in known, line
    assert "#SBATCH --signal=B:USR1@600" in directives.values()


def test_the_skypilot_file_names_what_launch_reads() -> None:
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((ROOT / "scripts" / "skypilot.yaml").read_text())
    assert {"name", "num_nodes", "resources", "workdir", "envs", "file_mounts", "setup", "run"} == task.keys()
    assert (ROOT / task["envs"]["SCRIPT"]).is_file()
    for name in ("MASTER_ADDR", "WORLD_SIZE", "RANK", "NPROC_PER_NODE"):
        assert f"{name}=" in task["run"]
    done = subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False)
    assert done.returncode == 0
