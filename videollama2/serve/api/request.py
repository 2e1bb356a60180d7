"""The request of OpenAI's chat completions, as it is understood here.

Every field of the official request is known. Those that do not change the answer (``user``, ``metadata``, ...) are
accepted and have no effect; those that would, and that no model here can honour (``tools``, audio, JSON output, ...),
are refused, each with its name. Fields nobody knows are refused too: a misspelt ``temperature`` must not go unnoticed.

Extensions, under the names vLLM uses: ``top_k``, ``repetition_penalty``, ``min_tokens``, ``video_url`` parts, and
``mm_processor_kwargs`` (``num_frames``, ``start``, ``end``, ``sampling``), for all videos of a request or in one part.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_CHOICES = 16
"""Most answers to one request (``n``)."""

MAX_LOGPROBS = 20
"""Most likely tokens that may be reported at each place; OpenAI's bound."""

MAX_STOPS, MAX_STOP_LENGTH = 4, 1024
"""Texts that end an answer, and characters of one: each is looked for after every token."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""To JSON, 5.0 is a whole number like 5."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]


class _Model(BaseModel):
    # strict: "0" is no number, and true is not 1.
    model_config = ConfigDict(extra="forbid", strict=True)


def _only(*accepted: Any) -> Any:
    """Type of an official field that no model here can honour, but for values that ask for nothing."""

    def check(value: Any) -> Any:
        # The type too: True equals 1, and 0 equals False.
        if not any(type(value) is type(good) and value == good for good in accepted):
            raise PydanticCustomError("unsupported_parameter", "this is not supported by this server")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": list(accepted)})]


class VideoOptions(_Model):
    """Which frames of a video are looked at."""

    num_frames: Whole | None = Field(None, ge=1, le=1024, description="Frames, spread evenly; default the model's.")
    start: Seconds | None = Field(None, description="Seconds: use the video from here.")
    end: Seconds | None = Field(None, description="Seconds: use the video up to here.")
    sampling: Literal["index", "time"] | None = Field(
        None,
        description="Spread frames over their numbers (index, the default) or the clip's seconds (time).",
    )

    def given(self) -> dict[str, Any]:
        """Options that are set."""
        return self.model_dump(exclude_none=True)


class TextPart(_Model):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description="Accepted, without effect.")


class RefusalPart(_Model):
    type: Literal["refusal"]
    refusal: str


class ImageURL(_Model):
    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None, description="Accepted, without effect: every image takes the same number of tokens."
    )


class ImagePart(_Model):
    type: Literal["image_url"]
    image_url: ImageURL
    uuid: str | None = Field(None, description="Accepted, without effect: what is remembered goes by content alone.")
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description="Accepted, without effect.")


class VideoURL(_Model):
    url: str = Field(min_length=1)


class VideoPart(_Model):
    type: Literal["video_url"]
    video_url: VideoURL
    mm_processor_kwargs: VideoOptions | None = Field(None, description="For this video; goes before the request's.")
    uuid: str | None = Field(None, description="Accepted, without effect: what is remembered goes by content alone.")
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description="Accepted, without effect.")


def _form(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


def _text_or(parts: Any) -> Any:
    """Type of a content that is a text or a list of parts; a bad part is told as such, not as a text that is none."""
    return Annotated[Annotated[str, Tag("text")] | Annotated[parts, Tag("parts")], Discriminator(_form)]


UserPart = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class SystemMessage(_Model):
    role: Literal["system", "developer"]
    content: _text_or(list[TextPart])  # type: ignore[valid-type]
    name: str | None = None


class UserMessage(_Model):
    role: Literal["user"]
    content: _text_or(Annotated[list[UserPart], Field(min_length=1)])  # type: ignore[valid-type]
    name: str | None = None


class AssistantMessage(_Model):
    role: Literal["assistant"]
    content: _text_or(list[AssistantPart]) | None = None  # type: ignore[valid-type]
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = Field(None, description="Accepted, without effect.")
    audio: _only(None) = None  # type: ignore[valid-type]
    function_call: _only(None) = None  # type: ignore[valid-type]
    tool_calls: _only(None, []) = None  # type: ignore[valid-type]


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


_TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
Stop = Annotated[
    str | list[str] | None,
    WithJsonSchema(
        {"anyOf": [_TEXT_SCHEMA, {"type": "array", "items": _TEXT_SCHEMA, "maxItems": MAX_STOPS}, {"type": "null"}]}
    ),
]


class StreamOptions(_Model):
    include_usage: bool = Field(False, description="A last chunk with the usage of the whole request.")
    include_obfuscation: bool | None = Field(None, description="Accepted, without effect.")


class ChatRequest(_Model):
    """Body of ``POST /v1/chat/completions``."""

    model: str = Field(max_length=512)
    messages: list[ChatMessage] = Field(min_length=1)

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Whole | None = Field(1, ge=1, le=MAX_CHOICES)
    max_completion_tokens: Whole | None = Field(None, ge=1, description="Default: as many as fit.")
    max_tokens: Whole | None = Field(None, ge=1, description="Older name of max_completion_tokens.")
    temperature: Finite | None = Field(
        None,
        ge=0,
        le=2,
        description="0 takes the most likely token. Default 0, as published, or 1 where top_p, top_k or n asks for "
        "sampling.",
    )
    top_p: Finite | None = Field(None, gt=0, le=1)
    stop: Stop = Field(None, description=f"Up to {MAX_STOPS} texts that end the answer.")
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = False
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_LOGPROBS)

    top_k: Whole | None = Field(None, ge=-1, le=2**31, description="Extension. -1 or 0: from all tokens.")
    repetition_penalty: Finite | None = Field(None, gt=0, le=100, description="Extension. 1: none.")
    min_tokens: Whole | None = Field(None, ge=0, le=2**31, description="Extension. No end of text before.")
    mm_processor_kwargs: VideoOptions | None = Field(None, description="Extension. For all videos of the request.")

    metadata: dict[str, str] | None = Field(None, description="Accepted, without effect.")
    parallel_tool_calls: bool | None = Field(None, description="Accepted, without effect.")
    prediction: Any = Field(None, description="Accepted, without effect: it can only make an answer quicker.")
    prompt_cache_key: str | None = Field(None, description="Accepted, without effect.")
    prompt_cache_options: dict[str, Any] | None = Field(None, description="Accepted, without effect.")
    prompt_cache_retention: str | None = Field(None, description="Accepted, without effect.")
    safety_identifier: str | None = Field(None, description="Accepted, without effect.")
    service_tier: str | None = Field(None, description="Accepted, without effect.")
    store: bool | None = Field(None, description="Accepted, without effect: nothing is stored.")
    user: str | None = Field(None, description="Accepted, without effect.")

    audio: _only(None) = None  # type: ignore[valid-type]
    frequency_penalty: _only(None, 0, 0.0) = None  # type: ignore[valid-type]
    function_call: _only(None, "none", "auto") = None  # type: ignore[valid-type]
    functions: _only(None, []) = None  # type: ignore[valid-type]
    logit_bias: _only(None, {}) = None  # type: ignore[valid-type]
    modalities: _only(None, ["text"]) = None  # type: ignore[valid-type]
    moderation: _only(None) = None  # type: ignore[valid-type]
    presence_penalty: _only(None, 0, 0.0) = None  # type: ignore[valid-type]
    reasoning_effort: _only(None, "none") = None  # type: ignore[valid-type]
    response_format: _only(None, {"type": "text"}) = None  # type: ignore[valid-type]
    tool_choice: _only(None, "none", "auto") = None  # type: ignore[valid-type]
    tools: _only(None, []) = None  # type: ignore[valid-type]
    verbosity: _only(None, "medium") = None  # type: ignore[valid-type]
    web_search_options: _only(None) = None  # type: ignore[valid-type]

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_LENGTH for text in texts):
            raise PydanticCustomError(
                "stop", f"stop must be up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters"
            )
        return value

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("together", "top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("together", "stream_options needs stream: true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise PydanticCustomError("together", "max_tokens and max_completion_tokens differ: give one of them")
        if limits and (self.min_tokens or 0) > max(limits):
            raise PydanticCustomError("together", "min_tokens is more than max_completion_tokens")
        return self

    def sampling(self, choice: int = 0) -> dict[str, Any]:
        """Options of :class:`videollama2.inference.sampling.SamplingOptions` for one of ``n`` answers."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "min_new_tokens": self.min_tokens or 0,
            "temperature": self._temperature(),
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": max(self.top_k or 0, 0),
            "repetition_penalty": self.repetition_penalty,
            "stop": self.stop or (),
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }
        if self.seed is not None:
            options["seed"] = (self.seed + choice) % 2**63
        return options

    def _temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        wants_sampling = (self.top_p or 1) < 1 or (self.top_k or 0) > 0 or (self.n or 1) > 1
        return 1.0 if wants_sampling else 0.0
