"""Takes one request through vLLM: reads its media, generates, and sends the text on. Needs no vLLM by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from videollama2.engines.vllm.prompts import marked_ids
from videollama2.engines.vllm.sampling import sampling_fields
from videollama2.errors import ConfigError, EngineError, PromptError, VideoLlama2Error, first_line
from videollama2.inference.answer import Channel, Result, Timings
from videollama2.inference.media.cache import content_key
from videollama2.inference.media.reader import planned_tokens_of, read_part
from videollama2.inference.request import Request, TokenPrompt
from videollama2.inference.sampling import SamplingOptions, TokenLogprob, end_ids_of
from videollama2.inference.task import answer_budget, shortened
from videollama2.inference.text_stream import TextStream
from videollama2.media.kinds import AUDIO
from videollama2.processing import VideoLlama2Processor, expand_placeholders, media_tokens
from videollama2.prompting import Prompt

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


@dataclass
class Generation:
    """The state of one request.

    Attributes:
        ids: ids of the prompt with published sentinels.
        stage: ``waiting`` (for its media), ``prefilling`` or ``decoding``.
    """

    request: Request
    options: SamplingOptions
    ids: list[int]
    processor: VideoLlama2Processor
    max_length: int
    end_ids: Collection[int]
    channel: Channel = field(default_factory=Channel)
    stage: str = "waiting"

    def __post_init__(self) -> None:
        self._stream = TextStream(self.processor.tokenizer, self.options.stop, self.options.skip_special_tokens)
        self._chosen: list[int] = []
        self._notes: list[str] = []
        self._media_seconds = self._first_token = 0.0
        self._cached = 0
        self._task: asyncio.Task[None] | None = None
        self._has_begun = False

    def start(self, vllm: Any, name: str, pool: Executor) -> asyncio.Task[None]:
        """Start generating the answer with an ``AsyncLLM``. Whatever happens, the channel gets a result."""
        self._task = asyncio.get_running_loop().create_task(self._run(vllm, name, pool))
        return self._task

    def cancel(self) -> asyncio.Task[None] | None:
        """Stop generating; returns the task that ends soon, None if there is none yet."""
        self.channel.cancelled = True
        if self._task is not None and self._has_begun:
            self._task.cancel()
        return self._task

    async def _run(self, vllm: Any, name: str, pool: Executor) -> None:
        # A task that is cancelled before it has begun would end without a result.
        self._has_begun = True
        reason, error = "cancelled", None
        try:
            if not self.channel.cancelled:
                reason = await self._generate(vllm, name, pool)
        except asyncio.CancelledError:
            pass  # the result says so
        except VideoLlama2Error as fault:
            reason, error = "error", fault
        except ValueError as fault:  # vLLM's validation
            reason, error = "error", PromptError(first_line(fault))
        except Exception as fault:  # noqa: BLE001 - the waiting caller must get it as a result
            reason, error = "error", EngineError(f"vLLM: {first_line(fault)}")
        self._finish(reason, error)

    async def _generate(self, vllm: Any, name: str, pool: Executor) -> str:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        prompt, budget = await asyncio.get_running_loop().run_in_executor(pool, self._prompt)
        fields = sampling_fields(self.options, budget, self.end_ids, self.processor.tokenizer)
        grammar = fields.pop("grammar")
        structure = None if grammar is None else StructuredOutputsParams(grammar=grammar)
        params = SamplingParams(**fields, structured_outputs=structure, output_kind=RequestOutputKind.DELTA)
        self.stage = "prefilling"
        outputs = vllm.generate(prompt, params, name)
        try:
            async for output in outputs:
                self._cached = output.num_cached_tokens or self._cached
                reason = self._accept(output.outputs[0])
                if reason is not None:
                    return reason
        finally:
            await outputs.aclose()  # after a stop text, vLLM must not go on
        raise EngineError("vLLM ended an answer without a reason")

    def _prompt(self) -> tuple[dict[str, Any], int]:
        """Read the media; return the prompt in vLLM's form, and how many tokens its answer may have."""
        started = monotonic()
        data: dict[str, list[torch.Tensor]] = {}
        names: dict[str, list[str]] = {}
        counts = []
        for part in self.request.media:
            values, frames, note = read_part(part, self.processor)
            counts.append(media_tokens(self.processor.model_config, part.kind, frames))
            data.setdefault(part.kind, []).append(values)
            # vLLM hashes media to find them in its caches. It is given our hash of the pixels, so that the same clip
            # from another path is found too.
            names.setdefault(part.kind, []).append(content_key(part.kind, values)[-1].hex())
            self._notes += [note] if note is not None else []
        self._media_seconds = monotonic() - started
        budget = self.count(counts)
        prompt: dict[str, Any] = {
            "prompt_token_ids": marked_ids(self.ids, self.processor.model_config.vocab_size),
        }
        if data:
            prompt |= {"multi_modal_data": data, "multi_modal_uuids": names}
        return prompt, budget

    def count(self, counts: list[int]) -> int:
        """Count the prompt's tokens; return how many the answer may have. ``counts`` has those of the media.

        Raises:
            RequestTooLongError: there is no room for the answer.
            PromptError: a prompt that is to be shortened would lose a medium.
        """
        self.ids = shortened(self.ids, counts, self.request, self.max_length)
        expanded, _ = expand_placeholders(self.ids, counts, self.processor.model_config)
        self.channel.prompt_tokens = len(expanded)
        self.channel.audio_tokens = sum(
            count for part, count in zip(self.request.media, counts, strict=True) if part.kind == AUDIO
        )
        return answer_budget(len(expanded), sum(counts), self.options.max_new_tokens, self.max_length)

    def _accept(self, output: Any) -> str | None:
        """Take new tokens; return the finish reason if the answer ends with them."""
        if not self._first_token:
            self._first_token = monotonic() - self.channel.submitted
            self.stage = "decoding"
        ends = () if self.options.ignore_eos else self.options.end_ids or self.end_ids
        # A delta may hold several tokens, and a stop text may end in the middle of it: what follows is no part of the
        # answer.
        for position, token in enumerate(output.token_ids):
            if token in ends:
                return "stop"
            self._chosen.append(token)
            self.channel.completion_tokens += 1
            if output.logprobs is not None:
                self.channel.logprobs.append(_logprob(token, output.logprobs[position], self.options.logprobs or 0))
            self.channel.send(self._stream.push(token))
            if self._stream.stopped:
                return "stop"
        return None if output.finish_reason is None else "length"

    def _finish(self, reason: str, error: VideoLlama2Error | None) -> None:
        self.channel.send(self._stream.finish())
        self.channel.finish(
            Result(
                text=self._stream.text,
                finish_reason=reason,
                prompt_tokens=self.channel.prompt_tokens,
                cached_tokens=self._cached,
                audio_tokens=self.channel.audio_tokens,
                token_ids=tuple(self._chosen),
                logprobs=tuple(self.channel.logprobs) if self.options.logprobs is not None else None,
                notes=tuple(dict.fromkeys(self._notes)),
                timings=Timings(0.0, self._media_seconds, self._first_token),
                error=error,
            )
        )


def laid_out(
    request: Request,
    prompt: Prompt | TokenPrompt,
    processor: VideoLlama2Processor,
    max_length: int,
    defaults: GenerationConfig,
) -> Generation:
    """Prepare a request. One that is certainly too long is refused before its media are read.

    Args:
        defaults: the checkpoint's ``generation_config.json``.

    Raises:
        RequestTooLongError: prompt and answer do not fit into ``max_length``.
        ConfigError: vLLM has no such option.
        PromptError: a prompt that is to be shortened would lose a medium.
    """
    if request.priority:
        raise ConfigError(f"priority must be 0 with the engine vllm, got {request.priority}")
    options = request.options
    if options.repetition_penalty is None:
        options = replace(options, repetition_penalty=defaults.repetition_penalty or 1.0)
    ends = end_ids_of(defaults, processor.tokenizer)
    ids = prompt.token_ids(processor.tokenizer)
    generation = Generation(request, options, ids, processor, max_length, ends)
    sampling_fields(options, 1, ends, processor.tokenizer)  # refuses what vLLM cannot do
    counts = [planned_tokens_of(part, processor.model_config) for part in request.media]
    if None not in counts:
        generation.count([count for count in counts if count is not None])
    return generation


def _logprob(token: int, found: Mapping[int, Any], top: int) -> TokenLogprob:
    ranked = sorted(found.items(), key=lambda entry: -entry[1].logprob)[:top]
    return TokenLogprob(token, found[token].logprob, tuple((other, entry.logprob) for other, entry in ranked))
