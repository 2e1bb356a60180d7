"""Answers the questions and conversations of VLMEvalKit, one at a time, with this package's engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from videollama2.constants import TINY_MODEL_NAME
from videollama2.engines import MAX_NEW_TOKENS
from videollama2.engines.fitting import fitting_answers
from videollama2.inference.api import model_init
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.media.frames import frames_or_own
from videollama2.media.kinds import KINDS, VIDEO

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


class VideoLlama2(BaseModel):
    """The model on this package's engine.

    VLMEvalKit overwrites ``nframe`` and ``fps`` with the numbers of a data set that has them (``MVBench_MP4_8frame``,
    ``MVBench_MP4_1fps``), and sets them to None where the data set leaves the choice to the model.

    Args:
        pretrained: ``videollama2-tiny``, a folder or a hub name.
        nframe: frames per video; None for the checkpoint's.
        use_audio: hear the sound of videos too.
        max_length: maximum length of prompt and answer together; None for the engine's choice.
        options: of :func:`videollama2.model_init`, and ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``,
            ``min_p``, ``repetition_penalty``, ``seed`` of answers, which are greedy by default.
    """

    INTERLEAVE = True
    VIDEO_LLM = True
    allowed_types = ["text", *KINDS]

    def __init__(
        self,
        pretrained: str = TINY_MODEL_NAME,
        nframe: int | None = None,
        use_audio: bool = False,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        asked = {name: options.pop(name) for name in _SAMPLING if name in options}
        longest = options.pop("max_new_tokens", None)
        # VLMEvalKit's name for its own choice of an engine, which is of no effect for this class.
        options.pop("use_vllm", None)
        model, self._processor, _ = model_init(pretrained, **options)
        self._engine = Engine(model, self._processor, max_length=max_length)
        self._asked = {"max_new_tokens": longest or min(MAX_NEW_TOKENS, self._engine.max_length // 2), **asked}
        self._use_audio = use_audio
        self.nframe: int | None = frames_or_own(nframe or None, model.config.num_frames)
        self.fps: float | None = 1.0
        """Frames per second, used where ``nframe`` is None. A positive number tells VLMEvalKit that there is this."""

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer one question, whose texts and media stay in their order.

        Args:
            message: items with ``type`` (``text``, ``image``, ``video`` or ``audio``), ``value`` (the text or a path)
                and, for texts, perhaps ``role``: ``system``, or ``assistant`` for the beginning of the answer.
        """
        of_role: dict[str, list[Any]] = {"system": [], "user": [], "assistant": []}
        for item in message:
            of_role[item.get("role", "user")].append(self._part(item))
        return self._answer([{"role": role, "content": parts} for role, parts in of_role.items() if parts])

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answer the last turn of a conversation of items as for :meth:`generate_inner`."""
        return self._answer([{**turn, "content": [self._part(item) for item in turn["content"]]} for turn in message])

    def _part(self, item: Mapping[str, Any]) -> dict[str, Any]:
        kind, value = item["type"], item["value"]
        if kind == "text":
            return {"type": "text", "text": value}
        if kind != VIDEO:
            return {"type": kind, "path": value}
        heard = {"use_audio": True} if self._use_audio else {}
        if self.nframe is None and self.fps is not None:
            # Parts of messages have no rate, so the frames are chosen here.
            return {"type": VIDEO, VIDEO: self._processor.load_medium(VIDEO, value, {"fps": self.fps, **heard})}
        frames = {} if self.nframe is None else {"num_frames": self.nframe}
        return {"type": VIDEO, "path": value, **frames, **heard}

    def _answer(self, messages: list[dict[str, Any]]) -> str:
        is_begun = messages[-1]["role"] == "assistant"
        request = Request(messages, add_generation_prompt=not is_begun, continue_final_message=is_begun, **self._asked)
        (result,) = fitting_answers(self._engine, [request])
        return result.text.strip()
