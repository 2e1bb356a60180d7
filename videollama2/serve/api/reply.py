"""Defines the replies, in OpenAI's form: completions, chunks of a stream, models and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from videollama2.serve.web.errors import model_not_found
from videollama2.serve.web.sse import CONTENT_TYPE

FinishReason = Literal["stop", "length", "tool_calls"]


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[ChosenLogprob] | None
    refusal: None = None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCallReply(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallReply] | None = Field(None, exclude_if=lambda calls: calls is None)


class Choice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: str | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of text completions, in OpenAI's older form."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str | None = None


class Tokenized(BaseModel):
    """vLLM's reply to ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]


class Version(BaseModel):
    version: str


class Model(BaseModel):
    """A model.

    ``max_model_len`` limits the tokens of prompt and answer together (vLLM's field); None if no worker reports it.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "videollama2"
    max_model_len: int | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | int | None


class ErrorBody(BaseModel):
    error: ErrorDetail


EVENT_STREAM: dict[str, Any] = {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}
"""OpenAPI description of a reply that may be a stream."""

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "A bad request, or media that cannot be used",
        401: "No key, or a wrong one",
        404: "No such model",
        408: "The body did not arrive in time",
        413: "Body or media too large",
        415: "A body that is not JSON",
        422: "A body of a wrong shape",
        429: "Too many requests wait; see Retry-After",
        500: "A fault of the server",
        502: "A worker failed",
        503: "Not ready, or shutting down; see Retry-After",
        504: "A worker did not answer in time",
    }.items()
}
"""OpenAPI description of a route's error replies."""


def models_reply(lengths: Mapping[str, int | None], created: int) -> ModelList:
    """Return the list of models in OpenAI's form.

    Args:
        lengths: names of the models with their ``max_model_len``.
    """
    return ModelList(data=[model_reply(name, lengths, created) for name in lengths])


def model_reply(name: str, lengths: Mapping[str, int | None], created: int) -> Model:
    """Return one model in OpenAI's form.

    Raises:
        ApiError: 404, there is no model of this name.
    """
    if name not in lengths:
        raise model_not_found(name)
    return Model(id=name, created=created, max_model_len=lengths[name])
