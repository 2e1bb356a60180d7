"""docs/evaluate.md, typed as it stands there, with a real server on loopback as the judge."""

import os
import re

import pytest

from tests.conftest import ROOT
from tests.eval.helpers.judge_server import JudgeServer
from tests.eval.helpers.reference import unpadded
from tests.helpers.forked import run_program

pytest.importorskip("openai")


@pytest.mark.slow
def test_on_a_laptop(tmp_path, python_of_forks):
    (commands,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "evaluate.md").read_text(), re.DOTALL)
    for name in ("videollama2", "scripts", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OPENAI_API_KEY", "NPROC", "JUDGE", "OUTPUT", "DATA", "HTTP_PROXY")
    clean = {name: value for name, value in os.environ.items() if name.upper() not in names}
    installed = 'set -e\ncd "$HERE"\nvideollama2() { "$PYTHON" -m videollama2 "$@"; }\n'
    server = JudgeServer()
    server.script = {"": ["{''score': 4.8}."]}  # as the published texts ask for it
    try:
        own = {"PYTHON": str(python_of_forks), "HERE": str(tmp_path), "NPROC": "1", "OMP_NUM_THREADS": "1"}
        words = ["bash", "-c", installed + commands.replace("http://127.0.0.1:8000/v1", server.url)]
        done = run_program(words, 300, env={**clean, **own})
    finally:
        server.close()
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    said = unpadded(done.stdout)
    assert "| accuracy | published | 40 | 39 |" in said
    assert "MSVC is judged, and no judge is given. The answers are saved" in said
    assert "correctness: rows 3, skipped 0, duplicates 0, cached 0, calls 3" in said
    assert "| correctness | strict | 0-5 | 3 | 4.80 |" in said
    assert "| correctness | published | 0-5 | 3 | 4.00 |" in said  # cut to a whole number, as published
    assert "rubric published" in said
    assert len(server.seen) == 6
    assert "You are an intelligent chatbot designed for evaluating the factual accuracy" in str(server.seen)
    assert "accuracy, strict (%)" in said
    folder = tmp_path / "eval_output" / "mvbench" / "videollama2-tiny"
    assert {"results.json", "results.md", "results.png", "samples.jsonl"} <= {path.name for path in folder.iterdir()}
