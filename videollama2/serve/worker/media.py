"""Reads the media of requests: each is fetched, decoded in the sandbox, and becomes a part of an engine's message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from videollama2.errors import PromptError
from videollama2.media.kinds import AUDIO
from videollama2.serve.api.messages import MediumAsked
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.fetch import MediaFetcher
from videollama2.serve.untrusted_media.parts import DecodedPart, decode_part
from videollama2.serve.untrusted_media.sandbox import Sandbox
from videollama2.serve.untrusted_media.urls import is_of_video
from videollama2.serve.web.errors import ApiError
from videollama2.serve.worker.budget import WaitingBudget

if TYPE_CHECKING:
    from videollama2.config import VideoLlama2Config

_log = logging.getLogger(__name__)


class MediaDesk:
    """Reads media for one model.

    Args:
        config: configuration of the model, which says whether it sees and hears.
        fetcher: fetches the media that clients name.
        sandbox: decodes them.
        raw: budget of bytes of encoded media that are being fetched and decoded.
        retry_after_s: seconds after which a client is asked to retry if nothing can be decoded now.
    """

    def __init__(
        self,
        config: VideoLlama2Config,
        fetcher: MediaFetcher,
        sandbox: Sandbox,
        raw: WaitingBudget,
        retry_after_s: float,
    ) -> None:
        self.fetcher = fetcher
        self._config, self._sandbox, self._raw, self._retry_after_s = config, sandbox, raw, retry_after_s

    async def read_all(self, asked: Sequence[MediumAsked]) -> list[DecodedPart]:
        """Read all media of a request. If one cannot be read, the reading of the others is stopped.

        Raises:
            ApiError: a medium is refused, or the model has no encoder for it.
        """
        for medium in asked:
            self._check_senses(medium)
        tasks = [asyncio.ensure_future(self._read(medium)) for medium in asked]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # Nobody needs the other media of a request that is refused. Waiting for their ends gives their memory back
            # before the client hears of it.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _check_senses(self, medium: MediumAsked) -> None:
        from videollama2.processing import check_kind

        try:
            check_kind(self._config, medium.kind)
            if medium.use_audio:
                check_kind(self._config, AUDIO)
        except PromptError as error:
            raise ApiError(400, str(error), code="modality_not_supported", param=medium.param) from error

    async def _read(self, medium: MediumAsked) -> DecodedPart:
        try:
            # The bound is known before a byte is fetched (the length of a data URL, else the largest size allowed), and
            # holds until the bytes are decoded and dropped.
            async with self._raw.hold(self.fetcher.size_bound(medium.url)):
                source = await self.fetcher.fetch(medium.url, medium.kind)
                options = dict(medium.options)
                if medium.kind == AUDIO:
                    options["of_video"] = await asyncio.to_thread(is_of_video, medium.url, source)
                elif medium.use_audio:
                    options |= {"use_audio": True, "windows": medium.windows}
                found = await decode_part(self._sandbox, medium.kind, source, options)
                if found.note is not None:
                    _log.info("%s: %s", medium.param, found.note)
                return found
        except RefusedMediaError as error:
            if error.detail:
                _log.info("refused: %s (%s): %s", medium.kind, error, error.detail)
            kind = "invalid_request_error" if error.status < 500 else "server_error"
            retry = self._retry_after_s if error.status == 503 else None
            raise ApiError(
                error.status, str(error), type=kind, code=error.code, param=medium.param, retry_after=retry
            ) from error


def with_media(messages: Sequence[dict[str, Any]], media: Sequence[DecodedPart]) -> Iterator[dict[str, Any]]:
    """Yield the messages with media in their bare parts, in reading order."""
    left = iter(media)
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [part if part["type"] == "text" else next(left).part for part in content]
        yield {**message, "content": content}
