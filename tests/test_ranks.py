"""Which of several processes this one is, as the launchers tell it."""

import pytest

from videollama2.errors import ConfigError
from videollama2.ranks import rank_and_world


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": 2, "WORLD_SIZE": 3}, (2, 3)),
        ({"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 4}, (1, 4)),
        ({"SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 4}, (1, 4)),
        # A batch script: one process, whatever the job has asked for.
        ({"SLURM_PROCID": 0, "SLURM_NTASKS": 4}, (0, 1)),
        # torchrun, started by srun on every node.
        ({"RANK": 5, "WORLD_SIZE": 8, "SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 2}, (5, 8)),
    ],
)
def test_launchers(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert rank_and_world() == expected


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "RANK 1 must be below WORLD_SIZE 1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE must be whole numbers"),
        ({"SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID 4 must be below SLURM_STEP_NUM_TASKS 4"),
    ],
)
def test_numbers_that_cannot_be(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        rank_and_world()
