"""The way of docs/train.md from a user's own data to an answer, typed as it stands there."""

import re
import shutil

import pytest

from tests.conftest import ROOT
from tests.helpers.forked import run_program

from .helpers.runs import environment


@pytest.mark.slow
def test_own_data_to_an_answer(tmp_path, python_of_forks):
    (commands,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "train.md").read_text(), re.DOTALL)
    for name in ("videollama2", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "datasets", tmp_path / "datasets")
    (tmp_path / "datasets" / "custom_sft" / "custom.json").unlink(missing_ok=True)
    installed = 'set -e\nvideollama2() { "$PYTHON" -m videollama2 "$@"; }\n'
    names = ("WORLD_SIZE", "RANK", "LOCAL_BATCH_SIZE", "RUN_NAME", "DATA_DIR", "OUTP_DIR", "PYTHONPATH")
    clean = {name: value for name, value in environment().items() if name not in names}
    own = {"PYTHON": str(python_of_forks), "PYTHON_EXEC": str(python_of_forks)}
    done = run_program(["bash", "-c", installed + commands], 300, cwd=tmp_path, env={**clean, **own})
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert "4 records, 4 of them right: 1 image, 1 several media, 1 text only, 1 video" in done.stdout
    *_, answer, exported = done.stdout.splitlines()
    assert re.fullmatch(r"[a-z ]+", answer), answer  # what it says after one step on four records does not matter
    assert exported.startswith("written to runs/portable")
    assert (tmp_path / "runs" / "portable" / "README.md").is_file()
    assert (tmp_path / "runs" / "lora" / "loss.png").is_file()
    assert not (tmp_path / "runs" / "merged" / "adapter_config.json").exists()
