"""Renders messages with a tokenizer's own chat template, within bounds of time and length.

A template comes with a checkpoint, so it is a program of unknown origin. transformers runs it in a sandbox that
keeps it from files and objects; here it is also kept from running or printing for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from jinja2 import Template, TemplateError

from videollama2.errors import PromptError

MAX_SECONDS = 5.0
"""A template that runs longer is stopped; published ones take less than a millisecond."""

MAX_CHARACTERS = 1 << 24
"""What a template may print beside the messages' own text."""

_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Variables that :func:`render_chat_template` sets itself."""

_FAULTS = (TemplateError, RecursionError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What a faulty template raises: Jinja's own errors, and Python's where it computes with the wrong type."""


def render_chat_template(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    add_generation_prompt: bool,
    options: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
) -> str:
    """Apply a chat template.

    Args:
        messages: whose contents are plain strings.
        options: ``tools`` (JSON schemas or documented functions), ``documents``, and variables of the template.
        chat_template: name of one of the tokenizer's, or a template; None: the tokenizer's.

    Raises:
        PromptError: no template, an option that the template does not read, messages that the template refuses, or a
            template that does not end.
    """
    options = dict(options or {})
    tools, documents = options.pop("tools", None), options.pop("documents", None)
    template, names = _compiled(tokenizer, chat_template, bool(tools))
    unknown = set(options) - (names - _GIVEN)
    if unknown:
        raise PromptError(f"{_place(tokenizer)} does not read {', '.join(sorted(unknown))}")
    variables = {
        **tokenizer.special_tokens_map,
        **options,
        "messages": [dict(message) for message in messages],
        "tools": None if tools is None else [_tool_schema(tool) for tool in tools],
        "documents": documents,
        "add_generation_prompt": add_generation_prompt,
    }
    # The bound is on what the template adds: a conversation of any length is printed once.
    most = MAX_CHARACTERS + sum(len(message["content"]) for message in messages)
    try:
        return _run(template, variables, most)
    except _FAULTS as error:
        reason = " ".join(str(error).split())
        raise PromptError(f"{_place(tokenizer)} refuses these messages: {reason}") from error
    except _StoppedError as error:
        raise PromptError(f"{_place(tokenizer)} {error}") from error


def template_variables(tokenizer: Any, chat_template: str | None = None) -> frozenset[str]:
    """Return the names of the variables that a caller may set for a chat template (None: the tokenizer's)."""
    return _compiled(tokenizer, chat_template, False)[1] - _GIVEN - set(tokenizer.special_tokens_map)


def reads_tools(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template writes the tools that it is given."""
    return "tools" in _compiled(tokenizer, None, True)[1]


def tells_role(tokenizer: Any, role: str, chat_template: str | None = None) -> bool:
    """Whether the template renders a message of ``role`` behind an answer as something of its own.

    Templates of Mistral and Llama print whatever is not a user's as an answer of the assistant, or refuse it.
    """

    def rendered(probed: str) -> str | None:
        texts = {"user": "a", "assistant": "b"}
        opening = [{"role": name, "content": text} for name, text in texts.items()]
        try:
            messages = [*opening, {"role": probed, "content": "c"}, opening[0]]
            return render_chat_template(messages, tokenizer, False, chat_template=chat_template)
        except PromptError:
            return None

    text = rendered(role)
    return text is not None and text not in (rendered("assistant"), rendered("user"))


class _StoppedError(Exception):
    """A template took too long or printed too much."""


def _compiled(tokenizer: Any, name: str | None, with_tools: bool) -> tuple[Template, frozenset[str]]:
    """Return the tokenizer's template, and the names of the variables it reads."""
    # These two are private, yet they alone know the filters, tags and globals that chat templates may use. Both cache.
    from transformers.utils.chat_template_utils import _compile_jinja_template, _get_template_variables

    if not tokenizer.chat_template and name is None:
        raise PromptError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: this is not a chat checkpoint"
        )
    try:
        source = tokenizer.get_chat_template(name, tools=[{}] if with_tools else None)
        template = _compile_jinja_template(source)
        return template, _get_template_variables(source) - set(template.environment.globals)
    except (TemplateError, ValueError, RecursionError) as error:
        raise PromptError(f"{_place(tokenizer)} cannot be read: {error}") from error


def _run(template: Template, variables: dict[str, Any], most: int) -> str:
    pieces: list[str] = []
    length = 0
    with _stopped_after(MAX_SECONDS):
        for piece in template.generate(**variables):
            length += len(piece)
            if length > most:
                raise _StoppedError(f"prints more than {most} characters")
            pieces.append(piece)
    return "".join(pieces)


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Stop template code of this thread that runs longer, also where it loops without printing."""
    deadline = monotonic() + seconds

    def trace_line(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if monotonic() > deadline:
            raise _StoppedError(f"does not end within {seconds:g} s")
        return trace_line

    def trace_call(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        # Only frames of the template are traced line by line. Tracing all of Python would slow down every filter that
        # it calls.
        return trace_line if frame.f_code.co_filename == "<template>" else None

    # A trace function is called before each line of the template's code and of nothing else; what is usually found
    # here before is a debugger's or none.
    before = sys.gettrace()
    sys.settrace(trace_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _tool_schema(tool: Any) -> Any:
    from transformers.utils.chat_template_utils import get_json_schema

    return tool if isinstance(tool, Mapping) else get_json_schema(tool)


def _place(tokenizer: Any) -> str:
    """Return how messages call the template: by the file that holds it."""
    folder = Path(tokenizer.name_or_path)
    names = ("chat_template.jinja", "tokenizer_config.json")
    file = next((folder / name for name in names if (folder / name).is_file()), folder)
    return f"the chat template of {str(file)!r}"
