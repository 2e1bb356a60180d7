"""What answers requests, as servers and programs see it.

:class:`videollama2.inference.engine.Engine` is one such class. A model that runs elsewhere (in another library, on
another machine) is another class with these members; nothing else of the package asks an engine for more.
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
    """What a back end remembers, for monitoring.

    Attributes:
        media_hits, media_misses: times that the tokens of a medium were known, or had to be computed.
        media_bytes: memory that tokens of media take.
        prefix_bytes: memory that key-values of prompt beginnings take.
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
        """Tokens that prompt and answer of one request may have together."""
        ...

    @property
    def max_batch(self) -> int:
        """Requests that run at once."""
        ...

    @property
    def max_queue(self) -> int:
        """Requests that may wait; more are refused."""
        ...

    @property
    def closed(self) -> bool:
        """It takes no request any more: it was closed, or it broke."""
        ...

    @property
    def load(self) -> Mapping[str, int]:
        """Requests that are ``decoding``, ``prefilling`` and ``waiting`` now."""
        ...

    @property
    def caches(self) -> CacheUse:
        """What is remembered between requests."""
        ...

    def submit(self, messages: Any, media: Sequence[Any] = (), **options: Any) -> Answer:
        """Hand in one request; arguments of :class:`videollama2.inference.request.Request`.

        Raises:
            PromptError, ConfigError: the request breaks a rule. RequestTooLongError: it cannot fit.
            QueueFullError: too many wait. EngineError: closed.
        """
        ...

    def close(self) -> None:
        """Cancel everything and take no request any more."""
        ...
