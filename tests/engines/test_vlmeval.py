"""VLMEvalKit asks the model: the answers of the package's own engine, by data sets of this test.

Runs where VLMEvalKit is installed: ``bash scripts/test_harnesses.sh vlmeval``.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vlmeval", reason="VLMEvalKit has an environment of its own (scripts/test_harnesses.sh)")

import pandas as pd
from vlmeval.config import supported_VLM
from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.inference_video import infer_data_job_video
from vlmeval.smp import LMUDataRoot, load

from tests.conftest import ROOT
from tests.engines.helpers.vllm_cases import CLIP, PICTURE, SOUNDING
from videollama2 import Engine, model_init
from videollama2.engines.vlmeval import register

pytestmark = [pytest.mark.vlmeval, pytest.mark.slow]

NAME = "videollama2-tiny-av"
COLOUR, COUNT, NOISE = (
    "Which colour does the square change to?",
    "How many objects can be seen?",
    "What made the noise?",
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model, processor, _ = model_init(NAME, device="cpu", dtype="float32")
    with Engine(model, processor) as engine:
        yield engine


def item(kind: str, value: object, **more: str) -> dict[str, Any]:
    return {"type": kind, "value": str(value), **more}


def user(question: str, **parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts["media"], {"type": "text", "text": question}]}]


def answer(engine: Engine, messages: list[dict[str, Any]], **options: Any) -> str:
    return engine.submit(messages, max_new_tokens=512, **options).result(120).text.strip()


@pytest.fixture(scope="module")
def model() -> Any:
    register()
    return supported_VLM[NAME](device="cpu", dtype="float32", use_audio=True)


def test_questions_of_all_forms(model: Any, engine: Engine) -> None:
    picture = {"type": "image", "path": str(PICTURE)}
    film = {"type": "video", "path": str(SOUNDING), "use_audio": True}
    only_heard = {"type": "audio", "path": str(SOUNDING)}
    assert model.generate(COUNT) == answer(engine, user(COUNT, media=[]))
    assert model.generate([item("image", PICTURE), item("text", COUNT)]) == answer(engine, user(COUNT, media=[picture]))
    several = [item("image", PICTURE), item("video", SOUNDING), item("text", NOISE)]
    assert model.generate(several) == answer(engine, user(NOISE, media=[picture, film]))
    heard = model.generate_inner([item("audio", SOUNDING), item("text", NOISE)])
    assert heard == answer(engine, user(NOISE, media=[only_heard]))
    begun = [
        item("text", "Answer in one word.", role="system"),
        item("video", SOUNDING),
        item("text", NOISE),
        item("text", "the", role="assistant"),
    ]
    wanted = [
        {"role": "system", "content": "Answer in one word."},
        *user(NOISE, media=[film]),
        {"role": "assistant", "content": "the"},
    ]
    assert model.generate(begun) == answer(engine, wanted, add_generation_prompt=False, continue_final_message=True)
    turns = [
        {"role": "user", "content": [item("image", PICTURE), item("text", COUNT)]},
        {"role": "assistant", "content": [item("text", "three")]},
        {"role": "user", "content": [item("text", COLOUR)]},
    ]
    second = [{"role": "assistant", "content": "three"}, {"role": "user", "content": COLOUR}]
    assert model.chat(turns) == answer(engine, [*user(COUNT, media=[picture]), *second])


class Shapes(VideoBaseDataset):
    """A data set of videos with two questions."""

    TYPE = "Video-VQA"

    def prepare_dataset(self, dataset: str) -> dict[str, str]:
        return {"root": str(CLIP.parent), "data_file": f"{LMUDataRoot()}/{dataset}.tsv"}

    @classmethod
    def supported_datasets(cls) -> list[str]:
        return []

    def build_prompt(self, line: int, video_llm: bool) -> list[dict[str, Any]]:
        assert video_llm
        row = self.data.iloc[line]
        return [item("video", Path(self.data_root) / row["video"]), item("text", row["question"])]

    @classmethod
    def evaluate(cls, *arguments: Any, **options: Any) -> None:
        """Nothing is judged here."""


@pytest.mark.parametrize(("sampling", "frames"), [({"nframe": 4}, 4), ({"fps": 1.0}, None), ({}, 8)])
def test_a_data_set_of_videos(
    sampling: dict[str, Any],
    frames: int | None,
    model: Any,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The numbers of frames are those of the data set, or the checkpoint's."""
    monkeypatch.setenv("LMUData", str(tmp_path))
    table = tmp_path / "shapes.tsv"
    rows = [{"index": i, "video": CLIP.name, "question": asked} for i, asked in enumerate((COLOUR, COUNT))]
    pd.DataFrame(rows).to_csv(table, sep="\t", index=False)
    model.nframe, model.fps = 8, 1.0
    data = Shapes("shapes", **sampling)
    result = tmp_path / "result.tsv"
    infer_data_job_video(model, str(tmp_path), NAME, data, result_file=str(result))
    film = {"type": "video", "path": str(CLIP), "num_frames": frames, "use_audio": True}
    wanted = [answer(engine, user(row["question"], media=[film])) for row in rows]
    assert [str(text) for text in load(str(result))["prediction"]] == wanted


def test_its_own_command(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line, with a table of pictures that lies where it looks for them."""
    monkeypatch.setenv("LMUData", str(tmp_path))
    encoded = base64.b64encode(PICTURE.read_bytes()).decode()
    row = {"index": 0, "image": encoded, "question": COUNT, "answer": "three"}
    pd.DataFrame([row]).to_csv(tmp_path / "Shapes.tsv", sep="\t", index=False)
    command = [sys.executable, "-m", "videollama2.engines.vlmeval", "--data", "Shapes", "--model", NAME]
    done = subprocess.run(
        [*command, "--mode", "infer", "--work-dir", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = [path for path in (tmp_path / "out").rglob("*Shapes*") if path.suffix in (".xlsx", ".tsv", ".csv")]
    assert results, done.stdout[-4000:] + done.stderr[-4000:]
    (picture,) = (path for path in (tmp_path / "images").rglob("0.*"))  # as VLMEvalKit writes it
    wanted = answer(engine, user(COUNT, media=[{"type": "image", "path": str(picture)}]))
    assert wanted in [str(text) for text in load(str(results[0]))["prediction"]]
