"""Defines what all request bodies have in common: strict field types, and the report of ignored fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, core_schema
from typing_extensions import LiteralString

from videollama2.serve.long_text import LongText, Text

_MOST_NAMED, _LONGEST_NAME = 8, 100


class Body(BaseModel):
    """A JSON object sent by a client.

    Values must have the declared type: "0" is not a number, and true is not 1. Unknown fields are kept aside, so that
    :func:`ignored_fields` can report them.
    """

    model_config = ConfigDict(extra="allow", strict=True)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A whole number. As in JSON, 5.0 is the same number as 5."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]

FIRST_FAULT: Any = Field(fail_fast=True)
"""For lists: report only the first faulty item. Reporting each one of a long list would take seconds."""


NO_EFFECT = "Accepted, without effect."
"""Description of a field that does not change the answer."""


def error(kind: LiteralString, message: str) -> PydanticCustomError:
    """Return a validation error with our own message, in which braces need no escaping."""
    return PydanticCustomError(kind, "{message}", {"message": message})


def _media_text(value: Any) -> Any:
    if not isinstance(value, (str, LongText)):
        raise error("string_type", "Input should be a valid string")
    if not len(value):
        raise error("string_too_short", "String should have at least 1 character")
    return value


if TYPE_CHECKING:
    MediaText = Text
else:
    MediaText = Annotated[Any, AfterValidator(_media_text), WithJsonSchema({"type": "string", "minLength": 1})]
"""The URL of a medium, or a medium in base64: a text that may be long."""


class Neutral:
    """Marks a known field that this server does not support: only values without an effect are accepted.

    Args:
        accepted: the accepted values.
        why: reason given when another value is refused.
    """

    def __init__(self, *accepted: Any, why: str = "this is not supported by this server") -> None:
        self.accepted, self.why = accepted, why

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": list(self.accepted)}

    def _check(self, value: Any) -> Any:
        # The type is compared too, because True equals 1 and False equals 0.
        if not any(type(value) is type(good) and value == good for good in self.accepted):
            raise error("unsupported_parameter", self.why)
        return value


class Hint:
    """Marks a known field that only hints at how to answer: any of its values is accepted and has no effect here.

    As in vLLM for models that do not reason; :func:`ignored_fields` reports a value that asks for something.

    Args:
        usual: the values that ask for nothing, apart from None.
    """

    def __init__(self, *usual: Any) -> None:
        self.usual = (None, *usual)

    def asks(self, value: Any) -> bool:
        """Return whether a value asks for something; an object does if one of its values does."""
        if isinstance(value, dict):
            return any(self.asks(item) for item in value.values())
        return value not in self.usual


def ignored_fields(body: BaseModel) -> list[str]:
    """Return the paths of a request's fields that are unknown or mere hints, up to a maximum number."""
    found = []
    for place in _unknown(body, ""):
        found.append(place)
        if len(found) == _MOST_NAMED:
            break
    return found


def _unknown(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        for name in value.model_extra or ():
            yield place + _printable(name)
        for name, field in type(value).model_fields.items():
            if any(isinstance(mark, Hint) and mark.asks(getattr(value, name)) for mark in field.metadata):
                yield place + name
            yield from _unknown(getattr(value, name), f"{place}{name}.")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if not isinstance(item, (BaseModel, list)):
                break  # all items of a list have the same kind
            yield from _unknown(item, f"{place}{number}.")


def _printable(name: str) -> str:
    """Return a client's field name in a form that is safe in a header."""
    return "".join(c if c.isascii() and c.isprintable() and c not in ", " else "?" for c in name[:_LONGEST_NAME])
