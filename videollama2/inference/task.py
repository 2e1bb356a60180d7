"""Holds the state of one request inside the engine, from its prompt to its last token."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from hashlib import blake2b
from threading import Condition
from time import monotonic
from typing import Any

import torch

from videollama2.config import VideoLlama2Config
from videollama2.errors import EngineError, PromptError, RequestTooLongError, VideoLlama2Error
from videollama2.inference.answer import Channel, Result, Timings
from videollama2.inference.media.read_ahead import ReadAhead
from videollama2.inference.media.reader import ReadMedium
from videollama2.inference.prefix_cache import BlockKeys
from videollama2.inference.request import Request, TokenPrompt
from videollama2.inference.sampling import Chooser, logprob
from videollama2.inference.text_stream import TextStream
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, VIDEO
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import expand_placeholders
from videollama2.prompting import Prompt


def answer_budget(prompt: int, media: int, wanted: int | None, max_length: int) -> int:
    """Return how many tokens an answer may have.

    Args:
        prompt: number of tokens of the prompt, of which ``media`` are those of media.
        wanted: maximum length of the answer; None for what is left.

    Raises:
        RequestTooLongError: prompt and answer do not fit into ``max_length``.
    """
    budget = wanted or max_length - prompt
    if budget < 1 or prompt + budget > max_length:
        answer = "an answer of at least 1" if wanted is None else f"an answer of up to {wanted}"
        raise RequestTooLongError(
            f"a prompt of {prompt} tokens ({media} of them of media) and {answer} do not fit into the "
            f"{max_length} positions of a slot (max_length)",
            prompt,
        )
    return budget


def shortened(ids: list[int], counts: Sequence[int], request: Request, max_length: int) -> list[int]:
    """Return the tokens of a prompt, without its beginning if the request wants a shorter one.

    Args:
        ids: ids with published sentinels, which are negative, see :class:`videollama2.prompting.Prompt`.
        counts: number of tokens of each medium.

    Raises:
        PromptError: a medium would be cut.
    """
    most = request.truncate_prompt_tokens
    if most is None:
        return ids
    if most == -1:
        most = max(1, max_length - (request.options.max_new_tokens or 1))
    # In ids, a medium is a single sentinel; in the prompt it has as many positions as tokens.
    cut = len(ids) - len(counts) + sum(counts) - most
    if cut <= 0:
        return ids
    if any(token < 0 for token in ids[:cut]):
        raise PromptError(f"truncate_prompt_tokens {request.truncate_prompt_tokens} would cut a medium of the prompt")
    return ids[cut:]


def _digest(key: Hashable) -> str:
    return blake2b(repr(key).encode(), digest_size=16).hexdigest()


class Task:
    """The state of one request. ``filled`` is the number of positions whose key-values are in its slot.

    ``identity`` gives what each position holds: a token id, or (content of a medium, index within it).
    """

    def __init__(
        self, request: Request, prompt: Prompt | TokenPrompt, channel: Channel, chooser: Chooser, tokenizer: Any
    ) -> None:
        self.request, self.channel, self.chooser = request, channel, chooser
        self.media_keys: list[Hashable] = []
        self.readings: list[Future[ReadMedium]] | None = None if request.media else []
        self.media: list[ReadMedium] = []
        self.input_ids: list[int] = []
        self.identity: list[Hashable] = []
        self.filled = self.cached = 0
        self.collected = False
        self._blocks = BlockKeys()
        self._prompt_ids = prompt.token_ids(tokenizer)
        self._stream = TextStream(tokenizer, request.options.stop, request.options.skip_special_tokens)
        self._logprobs = channel.logprobs
        self._budget = self._embedded_from = 0
        self._notes: list[str] = []
        self._embeds_LD: torch.Tensor | None = None
        self._taken = self._media_seconds = self._first_token = 0.0

    # --------------------------------------------------------------------------------------------------------- prompt

    @property
    def media_asked(self) -> bool:
        """Whether reading of the media has been requested, or there are none."""
        return self.readings is not None

    @property
    def media_ready(self) -> bool:
        """Whether each medium has been read or has failed to be read."""
        return self.readings is not None and all(reading.done() for reading in self.readings)

    @property
    def encoded(self) -> bool:
        """Whether each of the collected media has its tokens."""
        return all(medium.tokens is not None for medium in self.media)

    def collect_media(self) -> None:
        """Take the media that were read; raises the error of a medium that could not be read."""
        self.media = [reading.result() for reading in self.readings or ()]
        self.collected = True

    def read_again(self, ahead: ReadAhead, which: Sequence[bool]) -> None:
        """Ask for some of the collected media again."""
        asked = zip(self.readings or (), self.media_keys, self.request.media, which, strict=True)
        self.readings = [ahead.ask_again(key, part, old) if again else old for old, key, part, again in asked]
        self.media, self.identity, self.collected, self._blocks = [], [], False, BlockKeys()

    def give_back(self, ahead: ReadAhead) -> None:
        """Release the requested media."""
        if self.readings:
            self.readings = []
            for key in self.media_keys:
                ahead.release(key)

    def lay_out(self, config: VideoLlama2Config, counts: Sequence[int], max_length: int) -> None:
        """Assign positions to the prompt, with the numbers of media tokens in ``counts``.

        Raises:
            RequestTooLongError: prompt and answer do not fit into ``max_length``.
            PromptError: see :func:`shortened`.
        """
        ids = shortened(self._prompt_ids, counts, self.request, max_length)
        self.input_ids, _ = expand_placeholders(ids, counts, config)
        self.channel.prompt_tokens = len(self.input_ids)
        self.channel.audio_tokens = sum(
            count for part, count in zip(self.request.media, counts, strict=True) if part.kind == AUDIO
        )
        wanted = self.request.options.max_new_tokens
        self._budget = answer_budget(len(self.input_ids), sum(counts), wanted, max_length)

    def name_positions(self, config: VideoLlama2Config) -> None:
        """Fill ``identity``, once the prompt is laid out and its media are encoded."""
        self._taken = monotonic() - self.channel.submitted
        # A digest of a medium's key is shorter, and each position has it.
        counted = [(_digest(medium.key), medium.tokens) for medium in self.media if medium.tokens is not None]
        # Two prompts have the same identity exactly if the model computes the same for them. All media of a kind have
        # one placeholder id, so it is replaced by the content of the medium and the place within it.
        visual = iter([(key, n) for key, tokens_ND in counted for n in range(tokens_ND.shape[0])])
        placeholders = {getattr(config, kind.token_id_field) for kind in KINDS.values()}
        self.identity = [next(visual) if token in placeholders else token for token in self.input_ids]

    def keys_of(self, end: int) -> list[bytes]:
        """Return the keys of the blocks of the first ``end`` positions, under which their key-values are cached."""
        return self._blocks.of(self.identity, end)

    @property
    def prompt_keys(self) -> list[bytes]:
        """The keys of the blocks that need not be computed if they are cached.

        At least the last position is computed, because a request needs the logits of its last token.
        """
        return self.keys_of(len(self.input_ids) - 1)

    def embed(self, model: VideoLlama2ForConditionalGeneration) -> None:
        """Embed the positions of the prompt that are not filled."""
        weight = model.get_input_embeddings().weight
        ids = torch.tensor([self.input_ids[self.filled :]], device=weight.device)
        filled = sum(isinstance(item, tuple) for item in self.identity[: self.filled])  # those of media
        tokens: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
        for medium in self.media:
            if filled < len(medium.encoded):
                tokens[medium.kind].append(medium.encoded[filled:])
            filled = max(0, filled - len(medium.encoded))
            if medium.note is not None:
                self._notes.append(medium.note)
            self._media_seconds += medium.seconds
        self._embeds_LD = model.model.embed(ids, tokens[IMAGE], tokens[VIDEO], tokens[AUDIO])[0]
        self._embedded_from = self.filled
        self.media = []

    @property
    def remaining(self) -> int:
        """The number of prompt positions that are still to be prefilled."""
        return len(self.input_ids) - self.filled

    def next_embeddings(self, count: int) -> torch.Tensor:
        """Return the embeddings (1, count, D) of the next prompt positions."""
        assert self._embeds_LD is not None, "the prompt is prefilled already, or was not embedded"
        start = self.filled - self._embedded_from
        return self._embeds_LD[None, start : start + count]

    def drop_embeddings(self) -> None:
        """Free the embeddings once the prompt is prefilled."""
        self._embeds_LD = None

    # --------------------------------------------------------------------------------------------------------- answer

    def accept(self, token_id: int, logits_V: torch.Tensor) -> str | None:
        """Append the next token; returns the finish reason if the answer ends with it, else None."""
        if not self._first_token:
            self._first_token = monotonic() - self.channel.submitted
        # The end-of-text token is neither part of the answer nor fed back to the model.
        if self.chooser.ends_with(token_id):
            return "stop"
        self.chooser.take(token_id)
        self.channel.completion_tokens += 1
        self.identity.append(token_id)
        if self.request.options.logprobs is not None:
            self._logprobs.append(logprob(logits_V, token_id, self.request.options.logprobs))
        # The log-probabilities of a token are there before its text is sent, so a reader of the text finds them.
        self.channel.send(self._stream.push(token_id))
        if self._stream.stopped:
            return "stop"
        return "length" if len(self.chooser.chosen) >= self._budget else None

    def finish(self, reason: str, error: VideoLlama2Error | None) -> None:
        """Send the rest of the text and the result. The result is sent even if decoding the text fails."""
        try:
            self.channel.send(self._stream.finish())
        except Exception as fault:  # noqa: BLE001 - the waiting caller must get it as a result
            if error is None:
                reason, error = "error", EngineError(f"the answer cannot be decoded: {fault}")
        self.channel.finish(
            Result(
                text=self._stream.text,
                finish_reason=reason,
                prompt_tokens=len(self.input_ids),
                cached_tokens=self.cached,
                audio_tokens=self.channel.audio_tokens,
                token_ids=tuple(self.chooser.chosen),
                logprobs=tuple(self._logprobs) if self.request.options.logprobs is not None else None,
                notes=tuple(dict.fromkeys(self._notes)),
                timings=Timings(self._taken, self._media_seconds, self._first_token),
                error=error,
            )
        )


def end_of_tasks(ahead: ReadAhead, state: Condition) -> Callable[[Task, str, VideoLlama2Error | None], None]:
    """Return the function that ends a task.

    The function does not reference the engine: a cycle would keep the slots' memory until the garbage collector runs.
    """

    def end(task: Task, reason: str, error: VideoLlama2Error | None) -> None:
        task.give_back(ahead)
        task.finish(reason, error)
        with state:
            state.notify_all()

    return end
