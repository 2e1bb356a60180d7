"""Answers to harnesses: one that would not fit behind its prompt uses the room that there is."""

import pytest

from tests.conftest import ROOT
from videollama2 import Engine, model_init
from videollama2.engines.fitting import fitting_answers
from videollama2.errors import MediaError
from videollama2.inference.request import Request

CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"


def test_answers_that_are_longer_than_the_room() -> None:
    model, processor, _ = model_init("videollama2-tiny", device="cpu", dtype="float32")
    question = "Which colour does the square change to?"

    def request(source: object, longest: int) -> Request:
        return Request(question, [("video", source)], max_new_tokens=longest)

    with Engine(model, processor, max_length=256, background=False) as engine:
        short, long = fitting_answers(engine, [request(CLIP, 16), request(CLIP, 4096)])
        assert short.text == long.text == "yellow"
        with pytest.raises(MediaError, match="nowhere"):
            fitting_answers(engine, [request(CLIP, 16), request("nowhere.mp4", 4096)])
