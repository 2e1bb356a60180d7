"""Keeps answers to a required form: defines it, and tells the tokens that it allows at each step.

llguidance (the ``structured`` extra) compiles a JSON schema, choices, a regular expression or a Lark grammar into a
state machine over the tokenizer's vocabulary. Before each choice, the sampler asks it for the allowed tokens; all
others get probability zero, so a finished answer has the required form by construction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch

from videollama2.errors import ConfigError, EngineError

_BLANKS = " ?"
"""The white space allowed between the parts of a JSON text.

A weak model that may write more fills its whole answer with it, so that the JSON text is cut off at ``max_tokens``."""


@dataclass(frozen=True)
class Structure:
    """The form of an answer, as a rule of Lark's grammar language.

    Make one with :meth:`json_object`, :meth:`json_schema`, :meth:`choice`, :meth:`regex` or :meth:`grammar`.
    """

    kind: str
    rule: str

    @classmethod
    def json_object(cls) -> Structure:
        """Allow any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: dict[str, Any] | bool) -> Structure:
        """Allow JSON that conforms to a schema (JSON Schema draft 2020-12).

        Raises:
            ConfigError: this is not a schema. Its content is checked later, when the engine compiles it.
        """
        if not isinstance(schema, (dict, bool)):
            raise ConfigError(f"a JSON schema must be an object, got {type(schema).__name__}")
        options = {"x-guidance": {"whitespace_pattern": _BLANKS}}
        try:
            written = json.dumps({**schema, **options} if isinstance(schema, dict) else schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the JSON schema cannot be written as JSON: {error}") from error
        return cls("json", f"%json {written}")

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Structure:
        """Allow one of several texts.

        Raises:
            ConfigError: there are no texts, or one of them is empty.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"choices must be a list of texts that are not empty, got {texts!r}")
        return cls("choice", " | ".join(json.dumps(text) for text in texts))

    @classmethod
    def regex(cls, pattern: str) -> Structure:
        """Allow text that a regular expression matches as a whole (syntax of Rust's ``regex``)."""
        escaped = pattern.replace("\\/", "/").replace("/", "\\/")
        return cls("regex", f"/{escaped}/")

    @classmethod
    def grammar(cls, lark: str) -> Structure:
        """Allow text that the rule ``start`` of a Lark grammar derives."""
        return cls("grammar", lark)


class Constraint:
    """The progress of one answer within its structure. Only the model's thread may use it."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, vocabulary: int) -> torch.Tensor:
        """Return which of the ids 0 to ``vocabulary`` - 1 may come next, as bool (V,).

        Raises:
            EngineError: the grammar exceeds its limits of memory or time.
        """
        # One bit for each token of the tokenizer. The model may have more logits than that; no text belongs to those,
        # so they are not allowed.
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[:vocabulary].astype(bool)
        return torch.from_numpy(np.pad(allowed, (0, vocabulary - len(allowed))))

    def advance(self, token_id: int) -> None:
        """Advance by a token that was chosen."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the form of the answer cannot be kept: {_first_line(self._matcher.get_error())}")


class Grammars:
    """Compiles structures for one tokenizer. Thread-safe.

    Args:
        tokenizer: a fast tokenizer.
        vocabulary: number of logits per step, which may exceed the number of the tokenizer's tokens.
        end_ids: end-of-text tokens, allowed at every point at which an answer may end.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocabulary, self._end_ids = tokenizer, vocabulary, sorted(end_ids)
        self._compiled: Any = None
        self._lock = Lock()

    def constraint(self, structure: Structure | None) -> Constraint | None:
        """Compile a structure for one answer; returns None for None. A large schema takes up to a second.

        Raises:
            ConfigError: llguidance is not installed, or cannot compile the structure.
        """
        if structure is None:
            return None
        llguidance = _import_llguidance()
        matcher = llguidance.LLMatcher(
            self._vocabulary_of(llguidance), lark_of(structure, self._tokenizer), log_level=0
        )
        if matcher.is_error():
            names = {"json": "the JSON schema", "choice": "the choices", "regex": "the regular expression"}
            what = names.get(structure.kind, "the grammar")
            raise ConfigError(f"{what} cannot be used: {_first_line(matcher.get_error())}")
        return Constraint(matcher)

    def _vocabulary_of(self, llguidance: Any) -> Any:
        """Return the tokenizer in llguidance's form; it is converted only once, since that takes a second."""
        with self._lock:
            if self._compiled is None:
                self._compiled = llguidance.hf.from_tokenizer(
                    self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end_ids
                )
            return self._compiled


def lark_of(structure: Structure, tokenizer: Any) -> str:
    """Return the grammar of a structure for a tokenizer, in Lark's language as llguidance reads it."""
    if structure.kind == "grammar":
        return structure.rule
    # Metaspace tokenizers begin a text with a blank that decoding removes: "_yes" is decoded as "yes", and it is
    # the token that the model was trained on. For such tokenizers the grammar allows this one blank.
    blank = '" "? ' if _drops_first_blank(tokenizer) else ""
    return f"start: {blank}answer\nanswer: {structure.rule}\n"


def _drops_first_blank(tokenizer: Any) -> bool:
    token = tokenizer.convert_tokens_to_ids("\u2581a")
    return token is not None and token != tokenizer.unk_token_id and tokenizer.decode([token]) == "a"


def _import_llguidance() -> Any:
    try:
        import llguidance
        import llguidance.hf
    except ImportError as error:
        raise ConfigError(
            "structured output needs the package llguidance: pip install 'videollama2[structured]'"
        ) from error
    return llguidance


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason is given")
