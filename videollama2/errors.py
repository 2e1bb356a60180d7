"""The exceptions users see, as one tree. A message names the value, the rule and the file.

    VideoLlama2Error
    ├── MediaError                a video or image that cannot be used as asked (also a ValueError)
    │   ├── MediaNotFoundError    the path does not exist (also a FileNotFoundError)
    │   └── MediaLimitError       larger or longer than may be, or asked for beyond its end
    ├── PromptError               messages, tags or text that break a rule (also a ValueError)
    ├── ConfigError               a config.json field or a command-line setting that breaks a rule (also a ValueError)
    ├── CheckpointError           weights that are missing, surplus or of the wrong shape (also a ValueError)
    │   └── CheckpointNotFoundError   no such folder or hub name (also a FileNotFoundError)
    ├── DataError                 an annotation record that breaks the format (also a ValueError)
    ├── EngineError               a request that the engine cannot take or finish (also a RuntimeError)
    │   ├── RequestTooLongError       prompt and answer do not fit into a slot (also a ValueError)
    │   └── QueueFullError            as many requests wait as may
    └── MissingDependencyError    an optional package that the chosen feature needs (also an ImportError)

The command line prints the message alone and exits with code 2; ``--debug`` adds the traceback.
"""


class VideoLlama2Error(Exception):
    """Base of every error this package raises on purpose."""


class MediaError(VideoLlama2Error, ValueError):
    """A video or image cannot be read, or not in the way that was asked for."""


class MediaNotFoundError(MediaError, FileNotFoundError):
    """The path of a video or image does not exist."""

    # OSError.__str__ formats (errno, strerror); these errors carry one ready message.
    __str__ = Exception.__str__


class MediaLimitError(MediaError):
    """A medium is larger or longer than may be, or something beyond its end was asked for.

    Args:
        name: how messages call the medium.
        rule: the message without the name. It quotes numbers alone, so it may be shown to whoever sent the medium.
    """

    def __init__(self, name: str, rule: str) -> None:
        super().__init__(f"{name}: {rule}")
        self.rule = rule


class PromptError(VideoLlama2Error, ValueError):
    """Messages, media tags or text break a rule."""


class ConfigError(VideoLlama2Error, ValueError):
    """A configuration field or setting breaks a rule."""


class CheckpointError(VideoLlama2Error, ValueError):
    """A checkpoint's weights are missing, surplus or of the wrong shape."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at this path or hub name."""

    __str__ = Exception.__str__


class DataError(VideoLlama2Error, ValueError):
    """An annotation file or record breaks the documented format."""


class MissingDependencyError(VideoLlama2Error, ImportError):
    """An optional package is needed for this feature; the message says what to install."""

    __str__ = Exception.__str__


class EngineError(VideoLlama2Error, RuntimeError):
    """The engine cannot take or finish a request."""


class RequestTooLongError(EngineError, ValueError):
    """Prompt and answer do not fit into a slot; the message gives the numbers.

    Args:
        prompt_tokens: of the prompt, visual ones among them.
    """

    def __init__(self, message: str, prompt_tokens: int = 0) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens


class QueueFullError(EngineError):
    """As many requests wait as may; try again later."""


def first_line(error: BaseException) -> str:
    """The first line of what a library says, to be quoted in a message of ours; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
