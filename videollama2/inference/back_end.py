"""Defines the interface between a model that answers requests and the servers and programs that use it.

:class:`videollama2.inference.engine.Engine` implements it. A model that runs elsewhere (in another library, on another
machine) can be added as another class with these members; the rest of the package uses no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from videollama2.inference.answer import Answer

if TYPE_CHECKING:
    from videollama2.processing import VideoLlama2Processor


@dataclass(frozen=True)
class CacheUse:
    """Statistics of a back end's caches, for monitoring.

    Attributes:
        media_hits, media_misses: how often the tokens of a medium were cached, and how often they had to be computed.
        media_bytes: size of the cached media tokens.
        prefix_bytes: size of the cached key-values of prompt beginnings.
    """

    media_hits: int = 0
    media_misses: int = 0
    media_bytes: int = 0
    prefix_bytes: int = 0


@runtime_checkable
class BackEnd(Protocol):
    """Answers requests, many at a time, from any thread."""

    @property
    def processor(self) -> VideoLlama2Processor:
        """Tokenizer, chat template and configuration of the model."""
        ...

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of one request, prompt and answer together."""
        ...

    @property
    def max_batch(self) -> int:
        """Maximum number of requests that run at the same time."""
        ...

    @property
    def max_queue(self) -> int:
        """Maximum number of waiting requests; more are refused."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the back end accepts no more requests, because it was closed or has failed."""
        ...

    @property
    def load(self) -> Mapping[str, int]:
        """Return the current number of ``decoding``, ``prefilling`` and ``waiting`` requests."""
        ...

    @property
    def caches(self) -> CacheUse:
        """Return statistics of what is cached between requests."""
        ...

    def submit(self, messages: Any, media: Sequence[Any] = (), **options: Any) -> Answer:
        """Submit one request; the arguments are those of :class:`videollama2.inference.request.Request`.

        Raises:
            PromptError, ConfigError: the request is invalid.
            RequestTooLongError: the request is longer than ``max_length``.
            QueueFullError: ``max_queue`` requests are waiting already.
            EngineError: the back end is closed.
        """
        ...

    def close(self) -> None:
        """Cancel all requests and accept no more."""
        ...
