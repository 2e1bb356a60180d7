"""Defines the requests of ``/v1/completions`` and ``/tokenize``, whose text needs no chat template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from videollama2.serve.api.fields import FIRST_FAULT, Body, Neutral, Whole, error
from videollama2.serve.api.request import ChatMessage, ChatRequest
from videollama2.serve.api.sampling import SamplingFields

MAX_PROMPTS = 64
"""Maximum number of prompts in one request."""

MAX_COMPLETION_LOGPROBS = 5
"""OpenAI's maximum."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _prompt_form(prompt: Any) -> str:
    if isinstance(prompt, str):
        return "text"
    first = prompt[0] if isinstance(prompt, list) and prompt else ""
    return "tokens" if isinstance(first, int) else "texts" if isinstance(first, str) else "several"


Prompts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[TokenId], FIRST_FAULT, Field(min_length=1), Tag("tokens")]
    | Annotated[list[str], FIRST_FAULT, Field(min_length=1, max_length=MAX_PROMPTS), Tag("texts")]
    | Annotated[
        list[Annotated[list[TokenId], FIRST_FAULT]],
        FIRST_FAULT,
        Field(min_length=1, max_length=MAX_PROMPTS),
        Tag("several"),
    ],
    Discriminator(_prompt_form),
]


class CompletionRequest(SamplingFields):
    """Body of ``POST /v1/completions``."""

    prompt: Prompts = Field(description="Text, tokens, or a list of either.")
    max_tokens: Whole | None = Field(16, ge=0, description="Most tokens of each answer.")
    logprobs: Whole | None = Field(None, ge=0, le=MAX_COMPLETION_LOGPROBS)
    echo: bool | None = Field(None, description="The text begins with the prompt.")
    add_special_tokens: bool | None = Field(
        None, description="Extension. Default true: as the tokenizer begins a text."
    )
    suffix: Annotated[Any, Neutral(None, "")] = None

    @model_validator(mode="after")
    def _together(self) -> CompletionRequest:
        if self.max_tokens == 0:
            raise error("together", "max_tokens must be at least 1: this server answers, it does not score prompts")
        if self.echo and self.logprobs is not None:
            raise error("together", "echo and logprobs exclude each other: prompts are not scored")
        self.check_together(self.limit)
        return self

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of an answer; None for as many as the context holds."""
        return self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, each a text or a list of token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        is_one = isinstance(self.prompt[0], int)
        return [self.prompt] if is_one else list(self.prompt)  # type: ignore[list-item]

    def sampling(self, choice: int = 0, limit: int | None = None) -> dict[str, Any]:
        """See :meth:`SamplingFields.sampling`."""
        return {**super().sampling(choice, limit), "logprobs": self.logprobs}


class TokenizePrompt(Body):
    """Body of ``POST /tokenize`` about a text."""

    model: str | None = Field(None, max_length=512)
    prompt: str
    add_special_tokens: bool = True


class TokenizeMessages(Body):
    """Body of ``POST /tokenize`` about a conversation."""

    model: str | None = Field(None, max_length=512)
    messages: Annotated[list[ChatMessage], FIRST_FAULT] = Field(min_length=1, max_length=2048)
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False

    def as_chat(self) -> ChatRequest:
        """Return the chat request that asks for an answer to these messages."""
        is_continued = bool(self.continue_final_message)
        return ChatRequest.model_validate(
            {
                "model": self.model or "",
                "messages": self.messages,
                "continue_final_message": is_continued,
                "add_generation_prompt": self.add_generation_prompt is not False and not is_continued,
            }
        )


def _tokenize_form(body: Any) -> str:
    return "messages" if isinstance(body, dict) and "messages" in body else "prompt"


TokenizeRequest = Annotated[
    Annotated[TokenizePrompt, Tag("prompt")] | Annotated[TokenizeMessages, Tag("messages")],
    Discriminator(_tokenize_form),
]
