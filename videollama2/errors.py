"""Defines the exceptions of this package, as one tree. A message names the value, the rule and the file.

    VideoLlama2Error
    ├── MediaError                a video or image cannot be used as requested (also a ValueError)
    │   ├── MediaNotFoundError    the path does not exist (also a FileNotFoundError)
    │   └── MediaLimitError       a medium exceeds a limit, or something beyond its end was requested
    ├── PromptError               messages, tags or text violate a rule (also a ValueError)
    ├── ConfigError               a config.json field or a command-line setting violates a rule (also a ValueError)
    ├── CheckpointError           weights are missing, unexpected or of the wrong shape (also a ValueError)
    │   └── CheckpointNotFoundError   there is no such folder or hub name (also a FileNotFoundError)
    ├── DataError                 an annotation record violates the format (also a ValueError)
    ├── EngineError               the engine cannot take or finish a request (also a RuntimeError)
    │   ├── RequestTooLongError       prompt and answer do not fit into a slot (also a ValueError)
    │   └── QueueFullError            the maximum number of requests is waiting
    └── MissingDependencyError    an optional package is needed for a feature (also an ImportError)

The command line prints only the message and exits with code 2; ``--debug`` adds the traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_CHARACTERS = 200
"""Maximum number of characters of a value in a message."""


def shown(value: object) -> str:
    """Return how messages show a value that may be of any size, such as one that holds media as text."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


class VideoLlama2Error(Exception):
    """Base class of all errors that this package raises deliberately."""


class MediaError(VideoLlama2Error, ValueError):
    """A video or image cannot be read, or not in the requested way."""


class MediaNotFoundError(MediaError, FileNotFoundError):
    """The path of a video or image does not exist."""

    # OSError.__str__ formats (errno, strerror), but these errors carry a complete message.
    __str__ = Exception.__str__


class MediaLimitError(MediaError):
    """A medium is larger or longer than allowed, or does not have what was requested, such as a part beyond its end.

    Args:
        name: name of the medium in messages.
        rule: the message without the name. It quotes only numbers, so it may be shown to the sender of the medium.
    """

    def __init__(self, name: str, rule: str) -> None:
        super().__init__(f"{name}: {rule}")
        self.rule = rule


class PromptError(VideoLlama2Error, ValueError):
    """Messages, media tags or text violate a rule."""


class ConfigError(VideoLlama2Error, ValueError):
    """A configuration field or setting violates a rule."""


class CheckpointError(VideoLlama2Error, ValueError):
    """A checkpoint's weights are missing, unexpected or of the wrong shape."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at this path or hub name."""

    __str__ = Exception.__str__


class DataError(VideoLlama2Error, ValueError):
    """An annotation file or record violates the documented format."""


class MissingDependencyError(VideoLlama2Error, ImportError):
    """An optional package is needed for this feature; the message says how to install it."""

    __str__ = Exception.__str__

    @classmethod
    def of(cls, need: str, what: str) -> MissingDependencyError:
        """Return the error with the command that installs what is needed.

        Args:
            need: which feature needs which package.
            what: a package, or an extra of this one such as ``[train]``. pip finds this package where it is installed,
                also from a clone, and adds the packages of the extra.
        """
        package = f"'videollama2{what}'" if what.startswith("[") else what
        return cls(f"{need}: pip install {package}")


class EngineError(VideoLlama2Error, RuntimeError):
    """The engine cannot take or finish a request."""


class RequestTooLongError(EngineError, ValueError):
    """Prompt and answer do not fit into a slot; the message gives the numbers.

    Args:
        prompt_tokens: number of tokens of the prompt, including visual ones.
    """

    def __init__(self, message: str, prompt_tokens: int = 0) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens


class QueueFullError(EngineError):
    """The maximum number of requests is waiting; try again later."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, to quote it in ours, or the error's class if there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def some_of(names: Sequence[object], most: int = 5, separator: str = ", ") -> str:
    """Return the first ``most`` of many names in words: "a, b and 3 more"."""
    more = len(names) - most
    return separator.join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")
