"""What is sent back: completions, chunks of a stream, models, errors. Shapes are OpenAI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from videollama2.serve.web.errors import model_not_found

FinishReason = Literal["stop", "length"]


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[ChosenLogprob] | None
    refusal: None = None


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


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


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "videollama2"


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
"""For the OpenAPI description of a route."""


def models_reply(names: Sequence[str], created: int) -> ModelList:
    """List of models as OpenAI writes it."""
    return ModelList(data=[Model(id=name, created=created) for name in names])


def model_reply(name: str, names: Sequence[str], created: int) -> Model:
    """One model as OpenAI writes it.

    Raises:
        ApiError: 404, there is none of this name.
    """
    if name not in names:
        raise model_not_found(name)
    return Model(id=name, created=created)
