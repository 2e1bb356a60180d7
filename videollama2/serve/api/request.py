"""Defines the request of OpenAI's chat completions.

Every field of the official request is known. Those that do not change the answer (``user``, ``metadata``, ...) are
accepted and have no effect. Those that would change it, but that no model here supports (spoken answers, ...), are
refused with their name and the reason, unless their value has no effect. Unknown fields are ignored, as by other
servers, and listed in a header of the reply and in the log.

Extensions have vLLM's names. Among them are ``video_url`` and ``audio_url`` parts and ``mm_processor_kwargs``
(``num_frames``, ``start``, ``end``, ``sampling``, ``use_audio_in_video``), which apply to all videos of a request or to
a single part.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from videollama2.serve.api.fields import FIRST_FAULT, NO_EFFECT, Body, Hint, MediaText, Neutral, Whole, error
from videollama2.serve.api.media_options import AudioOptions, MediaIOOptions, VideoOptions
from videollama2.serve.api.sampling import AnswerForm, SamplingFields
from videollama2.serve.api.tools import MAX_TOOLS, NamedTool, Tool, ToolCall, ToolChoice, ToolUse, closed
from videollama2.serve.long_text import Text, with_head

MAX_LOGPROBS = 20
"""Maximum number of most likely tokens reported at each position; OpenAI's limit."""

MAX_MESSAGES = 2048
MAX_PARTS = 1024
"""Maximum number of parts of one message."""

MAX_METADATA = 16
"""Maximum number of entries of ``metadata``; OpenAI's limit."""

_UUID = "Accepted, without effect: what is remembered goes by content alone."


_OLD_TOOLS = "this is the older form of tools and tool_choice, which are to be used"


def _as_url(value: Any) -> Any:
    """Accept a bare URL in place of an object, which some clients send, as OpenAI's Responses API does."""
    return {"url": value} if isinstance(value, Text) else value


class TextPart(Body):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=NO_EFFECT)


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str


class ImageURL(Body):
    url: MediaText
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None, description="Accepted, without effect: every image takes the same number of tokens."
    )


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_url)]
    uuid: str | None = Field(None, description=_UUID)
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=NO_EFFECT)


class VideoURL(Body):
    url: MediaText


class VideoPart(Body):
    type: Literal["video_url"]
    video_url: Annotated[VideoURL, BeforeValidator(_as_url)]
    mm_processor_kwargs: VideoOptions | None = Field(None, description="For this video; goes before the request's.")
    uuid: str | None = Field(None, description=_UUID)
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=NO_EFFECT)


class AudioURL(Body):
    url: MediaText


class SoundPart(Body):
    """The fields that both forms of a sound have."""

    mm_processor_kwargs: AudioOptions | None = Field(None, description="Extension. Goes before the request's.")
    uuid: str | None = Field(None, description=_UUID)
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=NO_EFFECT)


class AudioPart(SoundPart):
    """A sound. A video is accepted too, of which only the sound is used."""

    type: Literal["audio_url"]
    audio_url: Annotated[AudioURL, BeforeValidator(_as_url)]

    @property
    def source(self) -> tuple[Text, str]:
        """The URL, and its place in the part."""
        return self.audio_url.url, "audio_url.url"


class InputAudio(Body):
    data: MediaText = Field(description="The file in base64.")
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "aac", "m4a", "mp4", "webm", "aiff"]


class InputAudioPart(SoundPart):
    """OpenAI's form of a sound, in more formats than OpenAI's two."""

    type: Literal["input_audio"]
    input_audio: InputAudio

    @property
    def source(self) -> tuple[Text, str]:
        """The sound as a ``data:`` URL, and its place in the part."""
        url = with_head(self.input_audio.data, 0, f"data:audio/{self.input_audio.format};base64,")
        return url, "input_audio.data"


AnyMediaPart = ImagePart | VideoPart | AudioPart | InputAudioPart


def _form(content: Any) -> str:
    return "text" if isinstance(content, str) else "parts"


# A content is either a text or a list of parts. The tag makes errors refer to the form that the client used.
TextContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], FIRST_FAULT, Field(max_length=MAX_PARTS), Tag("parts")],
    Discriminator(_form),
]
UserPart = Annotated[TextPart | AnyMediaPart, Field(discriminator="type")]
UserContent = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[UserPart], FIRST_FAULT, Field(min_length=1, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(_form),
]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
AssistantContent = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[AssistantPart], FIRST_FAULT, Field(max_length=MAX_PARTS), Tag("parts")],
    Discriminator(_form),
]


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: TextContent
    name: str | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: UserContent
    name: str | None = None


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: AssistantContent | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = Field(None, description=NO_EFFECT)
    audio: Annotated[Any, Neutral(None)] = None
    function_call: Annotated[Any, Neutral(None)] = None
    tool_calls: Annotated[list[ToolCall], FIRST_FAULT, Field(max_length=MAX_TOOLS)] | None = None


class ToolMessage(Body):
    """The result of a function that the client called."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: str


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class JSONSchema(Body):
    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Accepted, without effect: answers always keep to the schema.")


class PlainFormat(Body):
    type: Literal["text"]


class JSONObjectFormat(Body):
    type: Literal["json_object"]


class JSONSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JSONSchema


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

ResponseFormat = Annotated[PlainFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")]


class ChatRequest(SamplingFields):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], FIRST_FAULT] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Whole | None = Field(None, ge=1, description="Default, and at most: as many as fit.")
    max_tokens: Whole | None = Field(None, ge=1, description="Older name of max_completion_tokens.")
    logprobs: bool | None = False
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], FIRST_FAULT] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = Field(None, description="Default: auto where there are tools.")
    parallel_tool_calls: bool | None = Field(
        None, description="False: one call at most. True: also more than one where a call is demanded."
    )

    mm_processor_kwargs: VideoOptions | None = Field(None, description="Extension. For all videos of the request.")
    media_io_kwargs: MediaIOOptions | None = Field(None, description="Extension. As mm_processor_kwargs, by kind.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Extension. Values that the model's chat template may use."
    )
    add_generation_prompt: bool | None = Field(None, description="Extension. Default true.")
    continue_final_message: bool | None = Field(
        None, description="Extension. The last message, the assistant's, is continued."
    )
    add_special_tokens: Annotated[Any, Neutral(None, False, why="control tokens come from the chat template")] = None
    chat_template: Annotated[Any, Neutral(None, why="prompts are written with the model's own template")] = None
    documents: Annotated[Any, Neutral(None, [])] = None
    echo: Annotated[Any, Neutral(None, False)] = None

    metadata: dict[str, str] | None = Field(None, max_length=MAX_METADATA, description=NO_EFFECT)
    prediction: Any = Field(None, description="Accepted, without effect: it can only make an answer quicker.")
    prompt_cache_key: str | None = Field(None, description=NO_EFFECT)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=NO_EFFECT)
    safety_identifier: str | None = Field(None, description=NO_EFFECT)
    service_tier: str | None = Field(None, description=NO_EFFECT)
    store: bool | None = Field(None, description="Accepted, without effect: nothing is stored.")

    audio: Annotated[Any, Neutral(None)] = None
    function_call: Annotated[Any, Neutral(None, "none", "auto", why=_OLD_TOOLS)] = None
    functions: Annotated[Any, Neutral(None, [], why=_OLD_TOOLS)] = None
    modalities: Annotated[Any, Neutral(None, ["text"])] = None
    moderation: Annotated[Any, Neutral(None)] = None
    reasoning_effort: Annotated[ReasoningEffort | None, Hint("none")] = Field(
        None, description="Accepted, without effect: these models do not reason."
    )
    verbosity: Annotated[Literal["low", "medium", "high"] | None, Hint("medium")] = Field(None, description=NO_EFFECT)
    web_search_options: Annotated[Any, Neutral(None)] = None

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise error("together", "top_logprobs needs logprobs: true")
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise error("together", "max_tokens and max_completion_tokens differ: give one of them")
        if self.continue_final_message and self.add_generation_prompt:
            raise error("together", "continue_final_message and add_generation_prompt exclude each other")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise error("together", "continue_final_message needs a last message of the assistant")
        self._check_tools()
        self.check_together(self.limit)
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise error("tools", "two tools have one name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise error("tools", "tool_choice names a tool that is not among tools")
        if self.tool_choice == "required" and not names:
            raise error("tools", "tool_choice required needs tools")

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of the answer; None for as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def tool_use(self) -> ToolUse | None:
        """The request's use of tools; None if no tool may be called."""
        if not self.tools or self.tool_choice == "none":
            return None
        demanded = None
        if isinstance(self.tool_choice, NamedTool):
            demanded = self.tool_choice.function.name
        elif self.tool_choice == "required":
            demanded = ""
        functions = [tool.function for tool in self.tools]
        # A required call is a single one unless several are requested: a small model would never stop calling.
        is_parallel = self.parallel_tool_calls is not False if demanded is None else bool(self.parallel_tool_calls)
        return ToolUse(functions, demanded, is_parallel)

    def forms(self) -> list[AnswerForm]:
        """See :meth:`SamplingFields.forms`; a required tool call has a form too."""
        found = super().forms()
        if isinstance(self.response_format, JSONObjectFormat):
            found.append(AnswerForm("json_object"))
        elif isinstance(self.response_format, JSONSchemaFormat):
            found.append(
                AnswerForm("json_schema", closed(self.response_format.json_schema.schema_ or {"type": "object"}))
            )
        use = self.tool_use
        if use is not None and use.form is not None:
            found.append(use.form)
        return found

    def sampling(self, choice: int = 0, limit: int | None = None) -> dict[str, Any]:
        """See :meth:`SamplingFields.sampling`."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return {**super().sampling(choice, limit), "logprobs": logprobs}
