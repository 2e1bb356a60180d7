"""Offers tools to the model: functions of the client that it may ask the client to call.

If the model's chat template supports tools, it describes them in its own form. The templates of the published models do
not. For them, a system text describes the tools in the form that Qwen and Hermes models were trained with: a call is
written as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, and the result of the client's function comes
back as ``<tool_response>...</tool_response>``. If the client requires a call (``tool_choice`` is ``required`` or names
a function), constrained decoding forces the answer into the form of the call's arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field

from videollama2.serve.api.fields import Body
from videollama2.serve.api.sampling import AnswerForm

MAX_TOOLS = 128
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
_RESPONSE = "<tool_response>\n{text}\n</tool_response>"

_PROMPT = """You may call one or more of these functions to answer. Each is described by a line of JSON:
{tools}

To call a function, answer with a line of this form and nothing else:
{begin}{{"name": "NAME OF THE FUNCTION", "arguments": {{ARGUMENTS AS JSON}}}}{end}"""

ToolName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]


class FunctionDefinition(Body):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of the arguments.")
    strict: bool | None = Field(None, description="Accepted, without effect: demanded calls always keep to the schema.")


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    name: ToolName


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class EarlierFunctionCall(Body):
    name: str
    arguments: str


class ToolCall(Body):
    """A call that an earlier answer requested."""

    id: str
    type: Literal["function"] = "function"
    function: EarlierFunctionCall


@dataclass(frozen=True)
class FoundCall:
    """A call found in an answer. ``arguments`` is JSON."""

    name: str
    arguments: str
    id: str

    def as_dict(self) -> dict[str, Any]:
        """Return the call in the form of chat completions."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class ToolUse:
    """A request's use of tools.

    Attributes:
        tools: tools that may be called.
        demanded: name of the tool that must be called, "" if any tool must be called, None if the model decides.
        is_parallel: whether one answer may hold several calls.
    """

    tools: Sequence[FunctionDefinition]
    demanded: str | None = None
    is_parallel: bool = True

    @property
    def system_text(self) -> str:
        """The system text that describes the tools to the model."""
        fields = {"name", "description", "parameters"}
        lines = [json.dumps(tool.model_dump(include=fields, exclude_none=True)) for tool in self.tools]
        return _PROMPT.format(tools="\n".join(lines), begin=CALL_BEGIN, end=CALL_END)

    @property
    def as_templates_read_it(self) -> list[dict[str, Any]]:
        """The tools in the form that chat templates with tool support expect."""
        return [{"type": "function", "function": tool.model_dump(exclude_none=True)} for tool in self.tools]

    @property
    def form(self) -> AnswerForm | None:
        """The form of an answer that must be a call: the arguments of the named tool, or else a list of calls."""
        if self.demanded is None:
            return None
        if self.demanded:
            (tool,) = [tool for tool in self.tools if tool.name == self.demanded]
            # The name is known, so the model writes the arguments alone. They can then be streamed as they come.
            return AnswerForm("json_schema", _arguments(tool))
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": _arguments(tool)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in self.tools
        ]
        most = {} if self.is_parallel else {"maxItems": 1}
        return AnswerForm("json_schema", {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **most})

    def read(self, text: str) -> tuple[str, list[FoundCall]]:
        """Return the text and the calls of a complete answer. Text that only resembles a call remains text."""
        if self.demanded:
            return "", [_found(self.demanded, text.strip())]
        if self.demanded == "":
            calls = self._calls([text])
            return ("", calls) if calls else (text, [])
        before, *rest = text.split(CALL_BEGIN)
        # Some models write only the call, without the marks around it.
        calls = self._calls((part.partition(CALL_END)[0] for part in rest) if rest else [text])
        return (before.rstrip() if rest else "", calls) if calls else (text, [])

    def _calls(self, texts: Iterable[str]) -> list[FoundCall]:
        found = []
        for text in texts:
            try:
                value = json.loads(text)
            except ValueError:
                continue
            found += [call for item in (value if isinstance(value, list) else [value]) if (call := self._call(item))]
        return found if self.is_parallel else found[:1]

    def _call(self, item: Any) -> FoundCall | None:
        names = {tool.name for tool in self.tools}
        if not isinstance(item, dict) or item.get("name") not in names:
            return None
        arguments = item.get("arguments", item.get("parameters", {}))
        return _found(item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))


def _arguments(tool: FunctionDefinition) -> dict[str, Any]:
    return closed(tool.parameters or {"type": "object", "properties": {}})


def closed(schema: Any) -> Any:
    """Return the schema with unlisted names forbidden, because a small model would keep on adding some."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: value if name in ("enum", "const", "default") else closed(value) for name, value in schema.items()}
    is_open = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    # Parts of a combined schema are left open, since each of them would forbid the names of the others.
    is_whole = not schema.keys() & {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "if"}
    return {**found, "additionalProperties": False} if is_open and is_whole else found


def _found(name: str, arguments: str) -> FoundCall:
    return FoundCall(name, arguments, f"call_{uuid4().hex[:24]}")


class CallReader:
    """Turns the text of a growing answer that may (or must) hold tool calls into deltas for the client.

    Text is held back while it could be the beginning of a call. If a named tool must be called, the whole answer is its
    arguments, which are sent on as they arrive. Otherwise calls are recognised only once the answer is complete.
    """

    def __init__(self, use: ToolUse) -> None:
        self._use = use
        self._text, self._told = "", 0
        self._id = f"call_{uuid4().hex[:24]}"
        self._is_begun = False
        self.has_calls = False

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Return the deltas that can be sent after this text."""
        self._text += text
        if self._use.demanded:
            return [*self._beginning(), self._arguments(text)]
        return self._content(self._safe_end())

    def end(self) -> list[dict[str, Any]]:
        """Return the remaining deltas once the answer is complete."""
        if self._use.demanded:
            return self._beginning()
        text, calls = self._use.read(self._text)
        self.has_calls = bool(calls)
        rest = self._content(len(self._text)) if not calls else []
        return [*rest, *({"tool_calls": [{"index": n, **call.as_dict()}]} for n, call in enumerate(calls))]

    def _beginning(self) -> list[dict[str, Any]]:
        if self._is_begun:
            return []
        self._is_begun = self.has_calls = True
        function = {"name": self._use.demanded, "arguments": ""}
        return [{"tool_calls": [{"index": 0, "id": self._id, "type": "function", "function": function}]}]

    def _arguments(self, text: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}

    def _content(self, end: int) -> list[dict[str, Any]]:
        text, self._told = self._text[self._told : end], max(end, self._told)
        return [{"content": text}] if text else []

    def _safe_end(self) -> int:
        """Return the position up to which the text cannot belong to a call."""
        # Some models write a call without its mark. What begins like JSON is therefore held back until the end, as it
        # cannot be told from an answer in JSON before.
        if self._use.demanded is not None or self._text.lstrip()[:1] in ("{", "["):
            return 0
        begin = self._text.find(CALL_BEGIN)
        if begin >= 0:
            return len(self._text[:begin].rstrip())
        # The end of the text may be the beginning of the mark. Blanks before it are held back as well, because they are
        # no part of the answer if the mark follows.
        longest = min(len(CALL_BEGIN) - 1, len(self._text))
        partial = next((n for n in range(longest, 0, -1) if CALL_BEGIN.startswith(self._text[-n:])), 0)
        return len(self._text[: len(self._text) - partial].rstrip())


def call_text(call: ToolCall) -> str:
    """Return an earlier call as text, for a model whose template has no form for it."""
    return CALL_BEGIN + json.dumps({"name": call.function.name, "arguments": _as_json(call)}) + CALL_END


def template_call(call: ToolCall) -> dict[str, Any]:
    """Return an earlier call in the form that chat templates expect."""
    function = {"name": call.function.name, "arguments": _as_json(call)}
    return {"id": call.id, "type": "function", "function": function}


def _as_json(call: ToolCall) -> Any:
    try:
        return json.loads(call.function.arguments)
    except ValueError:
        return call.function.arguments


def response_text(text: str) -> str:
    """Return the result of the client's function as text, for a model whose template has no form for it."""
    return _RESPONSE.format(text=text)
