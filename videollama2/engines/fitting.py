"""Answers for harnesses, whose tasks ask for answers of any length without knowing the room that a prompt leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from videollama2.errors import RequestTooLongError
from videollama2.inference.answer import Result
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request


def fitting_answers(engine: Engine, requests: Sequence[Request], progress: bool = False) -> list[Result]:
    """Answer requests; an answer whose longest form does not fit behind its prompt may use the room that there is.

    Raises:
        VideoLlama2Error: the first error of a request, such as a medium that cannot be read.
    """
    results = engine.generate(requests, progress=progress)
    tight = [place for place, result in enumerate(results) if isinstance(result.error, RequestTooLongError)]
    for place in tight:
        requests[place].options = replace(requests[place].options, max_new_tokens=None)
    for place, result in zip(tight, engine.generate([requests[place] for place in tight]), strict=True):
        results[place] = result
    if (error := next((result.error for result in results if result.error is not None), None)) is not None:
        raise error
    return results
