"""What the bodies of all requests have in common: how their fields are typed, and which of them were ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema
from typing_extensions import LiteralString

IGNORED_HEADER = "x-ignored-fields"
"""Header of a reply that names the fields of the request which nobody here knows."""

_MOST_NAMED, _LONGEST_NAME = 8, 100


class Body(BaseModel):
    """A JSON object of a client.

    Values must have their type: "0" is no number, and true is not 1. Fields that are not known are kept aside, so that
    :func:`ignored_fields` can name them.
    """

    model_config = ConfigDict(extra="allow", strict=True)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""To JSON, 5.0 is a whole number like 5."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]

FIRST_FAULT: Any = Field(fail_fast=True)
"""Of a list: its first faulty item is the only one that is told. A complaint about each would take seconds."""


NO_EFFECT = "Accepted, without effect."
"""Description of a field that changes no answer."""


def error(kind: LiteralString, message: str) -> PydanticCustomError:
    """A complaint in words of ours, which may hold braces."""
    return PydanticCustomError(kind, "{message}", {"message": message})


class Neutral:
    """Marks the type of a known field that cannot be honoured here: only values that ask for nothing are accepted.

    Args:
        accepted: those values.
        why: the others are refused.
    """

    def __init__(self, *accepted: Any, why: str = "this is not supported by this server") -> None:
        self.accepted, self.why = accepted, why

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": list(self.accepted)}

    def _check(self, value: Any) -> Any:
        # The type too: True equals 1, and 0 equals False.
        if not any(type(value) is type(good) and value == good for good in self.accepted):
            raise error("unsupported_parameter", self.why)
        return value


def ignored_fields(body: BaseModel) -> list[str]:
    """Places of the fields that nobody here knows, the first few of them."""
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
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{place}{name}.")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if not isinstance(item, (BaseModel, list)):
                break  # the items of a list are of one kind
            yield from _unknown(item, f"{place}{number}.")


def _printable(name: str) -> str:
    """A client's word as it may stand in a header."""
    return "".join(c if c.isascii() and c.isprintable() and c not in ", " else "?" for c in name[:_LONGEST_NAME])
