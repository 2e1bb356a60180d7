"""Defines the fields that chat and text completions share: sampling, and the form of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema, field_validator

from videollama2.serve.api.fields import FIRST_FAULT, NO_EFFECT, Body, Finite, Neutral, Whole, error

MAX_CHOICES = 16
"""Maximum number of answers to one request (``n``)."""

MAX_STOPS, MAX_STOP_LENGTH = 4, 1024
"""Maximum number of stop texts, and of characters of each; every text is searched for after each token."""


_ONE_BY_ONE = "answers are made token by token: this server has no beam search"

_TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}
Stop = Annotated[
    str | Annotated[list[str], FIRST_FAULT] | None,
    WithJsonSchema(
        {"anyOf": [_TEXT_SCHEMA, {"type": "array", "items": _TEXT_SCHEMA, "maxItems": MAX_STOPS}, {"type": "null"}]}
    ),
]


@dataclass(frozen=True)
class AnswerForm:
    """The form that an answer must have.

    Attributes:
        kind: ``json_object``, ``json_schema``, ``choice``, ``regex`` or ``grammar``, which are the names of the
            constructors of :class:`videollama2.inference.structure.Structure`.
        value: argument of the constructor; None for ``json_object``.
    """

    kind: str
    value: Any = None


class StructuredOutputs(Body):
    """vLLM's ``structured_outputs``, of which exactly one field is set."""

    json_: Any = Field(None, alias="json", description="JSON Schema, as an object or as text.")
    json_object: bool | None = None
    choice: Annotated[list[str], FIRST_FAULT] | None = Field(None, max_length=1024)
    regex: str | None = None
    grammar: str | None = Field(None, description="In Lark's language; the answer is its rule ``start``.")

    def forms(self) -> list[AnswerForm]:
        """Return the requested forms."""
        found = []
        if self.json_ is not None:
            found.append(AnswerForm("json_schema", self.json_))
        if self.json_object:
            found.append(AnswerForm("json_object"))
        for kind in ("choice", "regex", "grammar"):
            value = getattr(self, kind)
            if value is not None:
                found.append(AnswerForm(kind, value))
        return found


class StreamOptions(Body):
    include_usage: bool = Field(False, description="A last chunk with the usage of the whole request.")
    continuous_usage_stats: bool | None = Field(
        None, description="Extension. With include_usage: every chunk tells the usage so far."
    )
    include_obfuscation: bool | None = Field(None, description=NO_EFFECT)


class SamplingFields(Body):
    """The fields of both kinds of completions. Those that OpenAI's API does not have are named as in vLLM."""

    model: str = Field(max_length=512)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Whole | None = Field(1, ge=1, le=MAX_CHOICES)
    temperature: Finite | None = Field(
        None,
        ge=0,
        le=2,
        description="0 takes the most likely token. Default 0, as published, or 1 where top_p, top_k, min_p or n asks "
        "for sampling.",
    )
    top_p: Finite | None = Field(None, gt=0, le=1)
    stop: Stop = Field(None, description=f"Up to {MAX_STOPS} texts that end the answer.")
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Finite] | None = Field(None, description="Token id -> what is added to its logit.")
    user: str | None = Field(None, description=NO_EFFECT)

    top_k: Whole | None = Field(None, ge=-1, le=2**31, description="Extension. -1 or 0: from all tokens.")
    min_p: Finite | None = Field(
        None, ge=0, le=1, description="Extension. From tokens at least this many times as likely as the likeliest."
    )
    repetition_penalty: Finite | None = Field(None, gt=0, le=100, description="Extension. 1: none.")
    min_tokens: Whole | None = Field(None, ge=0, le=2**31, description="Extension. No end of text before.")
    ignore_eos: bool | None = Field(None, description="Extension. The answer goes on behind an end of text.")
    skip_special_tokens: bool | None = Field(None, description="Extension. Default true: no names of control tokens.")
    structured_outputs: StructuredOutputs | None = Field(None, description="Extension. The form of the answer.")
    guided_json: Any = Field(None, description="Extension. Older name of structured_outputs.json.")
    guided_choice: Annotated[list[str], FIRST_FAULT] | None = Field(None, max_length=1024)
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_decoding_backend: str | None = Field(None, description=NO_EFFECT)
    request_id: str | None = Field(
        None, min_length=1, max_length=128, pattern=r"^[\w.-]+$", description="Extension. Part of the reply's id."
    )
    priority: Whole | None = Field(
        None, ge=-(2**31), lt=2**31, description="Extension. Waiting requests with a lower number run first; default 0."
    )
    truncate_prompt_tokens: Whole | None = Field(
        None,
        ge=-1,
        lt=2**31,
        description="Extension. Use the last tokens of the prompt, this many at most; -1: as many as fit. Only text in "
        "front of the first medium is cut.",
    )
    use_beam_search: Annotated[Any, Neutral(None, False, why=_ONE_BY_ONE)] = None
    length_penalty: Annotated[Any, Neutral(None, 1, 1.0, why=_ONE_BY_ONE)] = None
    best_of: Whole | None = Field(None, ge=1, description="Accepted where it is no more than n.")
    stop_token_ids: Annotated[Any, Neutral(None, [])] = None
    allowed_token_ids: Annotated[Any, Neutral(None, [])] = None
    bad_words: Annotated[Any, Neutral(None, [])] = None
    include_stop_str_in_output: Annotated[Any, Neutral(None, False)] = None
    spaces_between_special_tokens: Annotated[Any, Neutral(None, True, False)] = None
    prompt_logprobs: Annotated[Any, Neutral(None)] = None
    return_token_ids: Annotated[Any, Neutral(None, False)] = None
    return_tokens_as_token_ids: Annotated[Any, Neutral(None, False)] = None
    prompt_embeds: Annotated[Any, Neutral(None, why="this server takes no tensors")] = None
    logits_processors: Annotated[Any, Neutral(None, [])] = None
    cache_salt: Annotated[
        Any, Neutral(None, why="what is known of a prompt's beginning is shared by all clients here")
    ] = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_LENGTH for text in texts):
            raise error("stop", f"stop must be up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _token_biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name, bias in (value or {}).items():
            if not (name.isdecimal() and len(name) < 10 and -100 <= bias <= 100):
                raise error("logit_bias", "logit_bias must map token ids to numbers from -100 to 100")
        return value

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _some_tokens(cls, value: int | None) -> int | None:
        if value == 0:
            raise error("truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1")
        return value

    @property
    def handling(self) -> dict[str, Any]:
        """Arguments of :class:`videollama2.inference.request.Request` about its prompt and its place in the queue."""
        return {"priority": self.priority or 0, "truncate_prompt_tokens": self.truncate_prompt_tokens}

    def check_together(self, limit: int | None) -> None:
        """Check the rules that involve several fields.

        Args:
            limit: maximum number of tokens of the answer, if the request gives one.

        Raises:
            PydanticCustomError: a rule is violated.
        """
        if self.stream_options is not None and not self.stream:
            raise error("together", "stream_options needs stream: true")
        if limit is not None and (self.min_tokens or 0) > limit:
            raise error("together", "min_tokens is more than the answer may have (max_completion_tokens, max_tokens)")
        if (self.best_of or 1) > (self.n or 1):
            raise error("together", "best_of may not be more than n: this server does not rank answers")
        if self.forms() and (self.min_tokens or self.ignore_eos):
            raise error(
                "together", "min_tokens and ignore_eos exclude a given form, whose end is the end of the answer"
            )
        if len(self.forms()) > 1:
            raise error(
                "together",
                "give one form for the answer: response_format, structured_outputs and guided_* exclude each other",
            )

    def forms(self) -> list[AnswerForm]:
        """Return the requested forms of the answer; a valid request has at most one."""
        found = [] if self.structured_outputs is None else self.structured_outputs.forms()
        if self.guided_json is not None:
            found.append(AnswerForm("json_schema", self.guided_json))
        for kind in ("choice", "regex", "grammar"):
            value = getattr(self, f"guided_{kind}")
            if value is not None:
                found.append(AnswerForm(kind, value))
        return found

    def sampling(self, choice: int = 0, limit: int | None = None) -> dict[str, Any]:
        """Return arguments of :class:`videollama2.inference.sampling.SamplingOptions`, except for the answer's form.

        Args:
            choice: index of the answer, of ``n``.
            limit: maximum number of tokens of the answer; None for as many as the context holds.
        """
        options: dict[str, Any] = {
            "max_new_tokens": limit,
            "min_new_tokens": self.min_tokens or 0,
            "temperature": self._temperature(),
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": max(self.top_k or 0, 0),
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "logit_bias": {int(name): bias for name, bias in (self.logit_bias or {}).items()},
            "ignore_eos": bool(self.ignore_eos),
            "skip_special_tokens": self.skip_special_tokens is not False,
            "stop": self.stop or (),
        }
        if self.seed is not None:
            options["seed"] = (self.seed + choice) % 2**63
        return options

    def _temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        wants_sampling = (self.top_p or 1) < 1 or (self.top_k or 0) > 0 or (self.n or 1) > 1 or (self.min_p or 0) > 0
        return 1.0 if wants_sampling else 0.0
