"""Submits requests whose text is used as it is, without a chat template: completions and tokenisation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from videollama2.serve.api.completions import CompletionRequest, TokenizeMessages, TokenizePrompt
from videollama2.serve.api.messages import check_length, engine_messages
from videollama2.serve.web.errors import ApiError
from videollama2.serve.worker.service import ChatService, structure_of

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer


async def complete(service: ChatService, request: CompletionRequest) -> list[Answer]:
    """Submit a request with texts; return ``n`` answers to each of its prompts, in order.

    Raises:
        ApiError: the request is refused, or cannot be answered at the moment.
    """
    return await service.handed_in(_complete(service, request))


async def _complete(service: ChatService, request: CompletionRequest) -> list[Answer]:
    service.admit(request.model)
    with service.faults():
        return await asyncio.to_thread(_hand_in, service, request)


def _hand_in(service: ChatService, request: CompletionRequest) -> list[Answer]:
    from videollama2.inference.request import TokenPrompt

    structure = structure_of(request.forms())
    answers: list[Answer] = []
    try:
        for number, prompt in enumerate(request.prompts()):
            ids = prompt_ids(service, prompt, f"prompt.{number}", request.add_special_tokens is not False)
            tokens = TokenPrompt(tuple(ids), prompt if isinstance(prompt, str) else service.tokenizer.decode(ids))

            def submit(choice: int, limit: int | None, tokens: TokenPrompt = tokens) -> Answer:
                options = {**request.sampling(choice, limit), **request.handling, "structure": structure}
                return service.engine.submit(tokens, **options)

            answers += service.submit_each(submit, request.n or 1, request.limit)
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise
    return answers


def prompt_ids(service: ChatService, prompt: str | list[int], param: str, add_special_tokens: bool = True) -> list[int]:
    """Return the token ids of a prompt. Control tokens are allowed here, except those that represent media.

    Raises:
        ApiError: the prompt is empty or too long, or has a token that represents a medium or does not exist.
    """
    if isinstance(prompt, str):
        check_length(len(prompt), service.guard, param)
        text = service.guard.checked(prompt, param)
        ids: list[int] = service.tokenizer(text, add_special_tokens=add_special_tokens).input_ids
    else:
        ids = prompt
    config = service.engine.processor.model_config
    if not ids or not set(config.placeholder_ids).isdisjoint(ids) or max(ids) >= config.text_config.vocab_size:
        raise ApiError(400, "a prompt must be text, or tokens of this model that stand for text", param=param)
    return ids


def tokenized(service: ChatService, request: TokenizePrompt | TokenizeMessages) -> list[int]:
    """Return the token ids of a text, or of messages as the model reads them.

    Raises:
        ApiError: the text or the messages are invalid.
    """
    if isinstance(request, TokenizePrompt):
        return prompt_ids(service, request.prompt, "prompt", request.add_special_tokens)
    chat = request.as_chat()
    messages, media = engine_messages(chat, service.guard)
    if media:
        raise ApiError(
            400,
            "media have no tokens of their own: the usage of an answer counts what they take",
            code="unsupported_parameter",
            param=media[0].param,
        )
    with service.faults():
        prompt = service.engine.processor.prompt(
            messages,
            add_generation_prompt=chat.add_generation_prompt is not False,
            continue_final_message=bool(chat.continue_final_message),
        )
    return prompt.token_ids(service.tokenizer)
