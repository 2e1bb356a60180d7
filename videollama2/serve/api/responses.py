"""Defines the request of OpenAI's Responses API, and converts it into a chat request.

Nothing is stored on the server, so clients send the full conversation each time. ``previous_response_id`` and
``conversation`` are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from videollama2.serve.api.fields import FIRST_FAULT, NO_EFFECT, Body, Finite, Hint, MediaText, Neutral, Whole, error
from videollama2.serve.api.request import (
    MAX_MESSAGES,
    MAX_METADATA,
    MAX_PARTS,
    ChatRequest,
    InputAudio,
    JSONObjectFormat,
    PlainFormat,
)
from videollama2.serve.api.tools import MAX_TOOLS, FunctionDefinition

_STORED = "nothing is stored by this server: send the whole conversation as input"


class InputText(Body):
    type: Literal["input_text", "output_text"]
    text: str

    def as_part(self) -> dict[str, Any]:
        """Return the text as a part of a chat message."""
        return {"type": "text", "text": self.text}


class InputImage(Body):
    type: Literal["input_image"]
    image_url: MediaText
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description=NO_EFFECT)
    file_id: Annotated[Any, Neutral(None, why=_STORED)] = None

    def as_part(self) -> dict[str, Any]:
        """Return the image as a part of a chat message."""
        return {"type": "image_url", "image_url": {"url": self.image_url}}


class InputVideo(Body):
    """A video; an extension, analogous to ``input_image``."""

    type: Literal["input_video"]
    video_url: MediaText

    def as_part(self) -> dict[str, Any]:
        """Return the video as a part of a chat message."""
        return {"type": "video_url", "video_url": {"url": self.video_url}}


class InputSound(Body):
    """A sound, as ``input_audio`` of a chat message."""

    type: Literal["input_audio"]
    input_audio: InputAudio

    def as_part(self) -> dict[str, Any]:
        """Return the sound as a part of a chat message."""
        return {"type": self.type, "input_audio": dict(self.input_audio)}


class InputRefusal(Body):
    type: Literal["refusal"]
    refusal: str

    def as_part(self) -> dict[str, Any]:
        """Return the refusal as a part of a chat message."""
        return {"type": "text", "text": self.refusal}


InputPart = Annotated[InputText | InputImage | InputVideo | InputSound | InputRefusal, Field(discriminator="type")]


def _content_form(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


class InputMessage(Body):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[InputPart], FIRST_FAULT, Field(min_length=1, max_length=MAX_PARTS), Tag("parts")],
        Discriminator(_content_form),
    ]

    def as_message(self) -> dict[str, Any]:
        """Return the item as a chat message."""
        parts = self.content if isinstance(self.content, str) else [part.as_part() for part in self.content]
        return {"role": self.role, "content": parts}


class FunctionCall(Body):
    """A call that an earlier response asked for."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str

    def as_message(self) -> dict[str, Any]:
        """Return the call as a chat message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"role": "assistant", "tool_calls": [{"id": self.call_id, "type": "function", "function": function}]}


class FunctionOutput(Body):
    """The result of a function that the client called."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[InputText], FIRST_FAULT, Field(max_length=MAX_PARTS), Tag("parts")],
        Discriminator(_content_form),
    ]

    def as_message(self) -> dict[str, Any]:
        """Return the result as a chat message."""
        content = self.output if isinstance(self.output, str) else [part.as_part() for part in self.output]
        return {"role": "tool", "tool_call_id": self.call_id, "content": content}


def _item_form(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if kind in ("function_call", "function_call_output") else "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")],
    Discriminator(_item_form),
]


class SchemaFormat(Body):
    type: Literal["json_schema"]
    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextFormatOptions(Body):
    format: Annotated[PlainFormat | JSONObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Annotated[Any, Neutral(None, "medium")] = None


class FunctionTool(FunctionDefinition):
    type: Literal["function"]


class ChosenTool(Body):
    type: Literal["function"]
    name: str


class ResponsesRequest(Body):
    """Body of ``POST /v1/responses``."""

    model: str = Field(max_length=512)
    input: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[InputItem], FIRST_FAULT, Field(min_length=1, max_length=MAX_MESSAGES), Tag("parts")],
        Discriminator(_content_form),
    ]
    instructions: str | None = None
    stream: bool | None = False
    max_output_tokens: Whole | None = Field(None, ge=1)
    temperature: Finite | None = Field(None, ge=0, le=2)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_logprobs: Annotated[Any, Neutral(None, 0)] = None
    text: TextFormatOptions | None = None
    tools: Annotated[list[FunctionTool], FIRST_FAULT] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Whole | None = Field(
        None, ge=1, description="Accepted, without effect: the client makes the calls."
    )

    metadata: dict[str, str] | None = Field(None, max_length=MAX_METADATA, description="Told in the reply.")
    include: list[str] | None = Field(None, max_length=32, description=NO_EFFECT)
    store: bool | None = Field(None, description="Accepted, without effect: nothing is stored.")
    stream_options: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    service_tier: str | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=NO_EFFECT)
    user: str | None = Field(None, description=NO_EFFECT)
    reasoning: Annotated[dict[str, Any] | None, Hint("none")] = Field(
        None, description="Accepted, without effect: these models do not reason."
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: of a prompt that is too long, text in front of the first medium is cut."
    )
    background: Annotated[Any, Neutral(None, False, why=_STORED)] = None
    previous_response_id: Annotated[Any, Neutral(None, why=_STORED)] = None
    conversation: Annotated[Any, Neutral(None, why=_STORED)] = None
    prompt: Annotated[Any, Neutral(None, why=_STORED)] = None

    @model_validator(mode="after")
    def _tools_are_known(self) -> ResponsesRequest:
        names = {tool.name for tool in self.tools or ()}
        if isinstance(self.tool_choice, ChosenTool) and self.tool_choice.name not in names:
            raise error("tools", "tool_choice names a tool that is not among tools")
        if self.tool_choice == "required" and not names:
            raise error("tools", "tool_choice required needs tools")
        return self

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat messages."""
        first = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        return [*first, *(item.as_message() for item in self.input)]

    def place_of(self, param: str) -> str:
        """Return the path in this body that corresponds to a path in the chat request, for error messages."""
        head, *rest = param.split(".")
        if head != "messages" or not rest:
            return param
        number = int(rest[0]) - (self.instructions is not None)
        if number < 0:
            return "instructions"
        return "input" if isinstance(self.input, str) else ".".join(["input", str(number), *rest[1:]])

    def as_chat(self) -> ChatRequest:
        """Return the equivalent chat request.

        Raises:
            ValidationError: there is no equivalent request, although this body is valid.
        """
        choice: Any = self.tool_choice
        if isinstance(choice, ChosenTool):
            choice = {"type": "function", "function": {"name": choice.name}}
        tools = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in self.tools or ()
        ]
        return ChatRequest.model_validate(
            {
                "model": self.model,
                "messages": self.messages,
                "max_completion_tokens": self.max_output_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "stream": bool(self.stream),
                "response_format": self._response_format(),
                "tools": tools,
                "tool_choice": choice,
                "parallel_tool_calls": self.parallel_tool_calls,
                "truncate_prompt_tokens": -1 if self.truncation == "auto" else None,
            }
        )

    def _response_format(self) -> dict[str, Any] | None:
        form = None if self.text is None else self.text.format
        if form is None:
            return None
        if isinstance(form, SchemaFormat):
            return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema_}}
        return {"type": form.type}
