"""Renders messages as a :class:`Prompt`: what the tokenizer reads, with the places of the media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videollama2.constants import DEFAULT_VIDEO_TOKEN, MODAL_INDEX_MAP
from videollama2.errors import PromptError
from videollama2.media.kinds import AUDIO, TAGS
from videollama2.prompting.messages import Message, as_turns, check_last, check_messages
from videollama2.prompting.template import render_chat_template, tells_role

# The published system text of Mistral and Mixtral at inference. It defines published numbers: data, not prose.
SAFETY_SYSTEM_PROMPT = (
    "<<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. Please ensure that your responses are socially unbiased and positive in nature.\nIf a question does not "
    "make any sense, or is not factually coherent, explain why instead of answering something not correct. If you "
    "don't know the answer to a question, please don't share false information.\n<</SYS>>"
)
SYSTEM_PROMPTS = {"mistral": SAFETY_SYSTEM_PROMPT, "mixtral": SAFETY_SYSTEM_PROMPT}
"""Decoder ``model_type`` -> system text that inference puts first."""

_PRIVATE_USE = range(0xE000, 0xF8FF)
"""Characters that mean nothing to anybody else: templates carry them through, no tokenizer sees them."""


@dataclass(frozen=True)
class Prompt:
    """``chunks[0] tags[0] chunks[1] tags[1] ... chunks[-1]``, with tags of :data:`videollama2.media.kinds.TAGS`."""

    chunks: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt as one string, tags written out."""
        pairs = zip(self.chunks, (*self.tags, ""), strict=True)
        return "".join(chunk + tag for chunk, tag in pairs)

    def with_sounds(self, is_heard: Sequence[bool]) -> Prompt:
        """Return the same prompt with the tag of a sound right behind each medium that is heard too.

        Args:
            is_heard: one per tag.
        """
        chunks, tags = [self.chunks[0]], []
        for tag, heard, chunk in zip(self.tags, is_heard, self.chunks[1:], strict=True):
            tags += [tag, TAGS[AUDIO]] if heard else [tag]
            chunks += ["", chunk] if heard else [chunk]
        return Prompt(tuple(chunks), tuple(tags))

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Return the ids, with one published sentinel per medium."""
        ids: list[int] = []
        for chunk, tag in zip(self.chunks, (*self.tags, None), strict=True):
            ids += _tokenize(chunk, tokenizer)
            if tag is not None:
                ids.append(MODAL_INDEX_MAP[tag])
        return ids

    def ids_with_starts(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Return ids as :meth:`token_ids`, and the character of the text at which each starts; a medium counts 1."""
        ids: list[int] = []
        starts: list[int] = []
        base = 0
        for chunk, tag in zip(self.chunks, (*self.tags, None), strict=True):
            encoded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
            ids += encoded.input_ids
            starts += [base + start for start, _ in encoded.offset_mapping]
            base += len(chunk)
            if tag is not None:
                ids.append(MODAL_INDEX_MAP[tag])
                starts.append(base)
                base += 1
        return ids, starts


def tokenizer_multimodal_token(prompt: str, tokenizer: Any, tag: str | None = DEFAULT_VIDEO_TOKEN) -> list[int]:
    """Return the ids of ``prompt``, with the sentinel for every occurrence of ``tag`` (published function).

    Args:
        tag: one of ``<image>``, ``<video>``, ``<audio>``; empty or None: plain text.
    """
    if not tag:
        return _tokenize(prompt, tokenizer)
    if tag not in MODAL_INDEX_MAP:
        raise PromptError(f"unknown media tag {tag!r}; known: {', '.join(MODAL_INDEX_MAP)}")
    chunks = tuple(prompt.split(tag))
    return Prompt(chunks, (tag,) * (len(chunks) - 1)).token_ids(tokenizer)


def _tokenize(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def build_prompt(
    messages: Sequence[Message],
    tokenizer: Any,
    decoder_type: str,
    add_generation_prompt: bool = True,
    *,
    continue_final_message: bool = False,
    template_options: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
) -> Prompt:
    """Render messages with a chat template, as turns (see :func:`as_turns`).

    Args:
        messages: ``role`` and ``content``; content is text, or a list of parts ``{"type": "text", "text": ...}``,
            ``{"type": "image"}``, ``{"type": "video"}``, joined by line breaks (the published layout).
        tokenizer: with a chat template.
        decoder_type: ``model_type`` of the decoder; Mistral and Mixtral get the published system text unless the
            messages bring their own.
        add_generation_prompt: end where the assistant's answer begins. Ignored with ``continue_final_message``.
        continue_final_message: the last message is the beginning of the assistant's answer, and the prompt ends with
            its last character.
        template_options: ``tools``, ``documents`` and variables of the chat template.
        chat_template: in place of the tokenizer's: the name of one it has, or a template.

    Raises:
        PromptError: messages that break a rule of :func:`as_turns`, that the template refuses, or whose last one is
            the assistant's where an answer is to begin.
    """
    if add_generation_prompt or continue_final_message:
        check_messages(messages)
        check_last(messages, continue_final_message)
    flat, tags, marker = flatten(_complete(messages, tokenizer, decoder_type, chat_template))
    if not continue_final_message:
        return split(
            render_chat_template(flat, tokenizer, add_generation_prompt, template_options, chat_template), tags, marker
        )
    # A template closes the last message, with a mark of its own. A character that occurs nowhere else is put behind the
    # text, so that the prompt can be cut where the text ends.
    end = _unused_character(marker + "".join(turn["content"] for turn in flat))
    flat[-1]["content"] += end
    rendered = render_chat_template(flat, tokenizer, False, template_options, chat_template)
    if rendered.count(end) != 1:
        raise PromptError("the chat template does not print the last message as it is, so it cannot be continued")
    return split(rendered[: rendered.index(end)], tags, marker)


def build_labelled_prompt(
    messages: Sequence[Message],
    tokenizer: Any,
    decoder_type: str,
    add_generation_prompt: bool = False,
    *,
    template_options: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
) -> tuple[Prompt, list[bool]]:
    """Render a whole conversation as :func:`build_prompt` does, and tell which of its tokens are answers.

    Returns:
        the prompt, and per id of :meth:`Prompt.token_ids` whether the assistant says it. What closes an answer counts,
        as in training.
    """
    flat, tags, marker = flatten(_complete(messages, tokenizer, decoder_type, chat_template))
    whole = render_chat_template(flat, tokenizer, add_generation_prompt, template_options, chat_template)
    prompt = split(whole, tags, marker)
    spans = answer_spans(flat, whole, tokenizer, template_options, chat_template)
    return prompt, in_spans(prompt.ids_with_starts(tokenizer)[1], spans)


def answer_spans(
    flat: Sequence[Message],
    whole: str,
    tokenizer: Any,
    template_options: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
) -> list[tuple[int, int]]:
    """Return where the answers of a rendered conversation begin and end, in characters.

    Raises:
        PromptError: the template prints earlier turns in another way once later ones follow.
    """
    spans = []
    for turn, message in enumerate(flat):
        if message["role"] != "assistant":
            continue
        # Templates do not say where an answer stands. It is what a rendering gains between the beginning of the answer
        # and its end, provided that what was printed before stays as it is.
        before = render_chat_template(flat[:turn], tokenizer, True, template_options, chat_template)
        after = render_chat_template(flat[: turn + 1], tokenizer, False, template_options, chat_template)
        if not (whole.startswith(before) and whole.startswith(after)):
            raise PromptError("the chat template rewrites earlier turns when later ones follow: no place for labels")
        spans.append((len(before), len(after)))
    return spans


def in_spans(starts: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token whether it starts within one of the spans."""
    return [any(first <= start < end for first, end in spans) for start in starts]


def _complete(
    messages: Sequence[Message], tokenizer: Any, decoder_type: str, chat_template: str | None
) -> list[Message]:
    """Return turns that the template can show, with the system text that the decoder's published prompts begin with."""
    turns = _with_roles_of(tokenizer, as_turns(messages), chat_template)
    if decoder_type in SYSTEM_PROMPTS and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPTS[decoder_type]}]})
    return turns


def _with_roles_of(tokenizer: Any, turns: list[Message], chat_template: str | None) -> list[Message]:
    """Return turns that the tokenizer's template can tell apart.

    Under Mistral's and Llama's templates a system text that is not the first message would become an answer of the
    assistant. It is put in front there, joined to those before it.

    Raises:
        PromptError: a result of a tool, where the template has no form for it.
    """
    if any(turn["role"] == "tool" for turn in turns) and not tells_role(tokenizer, "tool", chat_template):
        raise PromptError("the chat template of this model has no form for messages of the role tool")
    system = [turn for turn in turns if turn["role"] == "system"]
    is_plain = not system or (len(system) == 1 and turns[0]["role"] == "system")
    if is_plain or tells_role(tokenizer, "system", chat_template):
        return turns
    text = "\n\n".join(text_of(turn) for turn in system)
    others = [turn for turn in turns if turn["role"] != "system"]
    return as_turns([{"role": "system", "content": text}, *others])  # questions may now stand in a row


def text_of(turn: Message) -> str:
    """Return the text of a turn, its parts joined by line breaks."""
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")


def flatten(turns: Sequence[Message]) -> tuple[list[Message], list[str], str]:
    """Return turns with string contents in which each medium is a private marker, the tags in order, and the marker.

    A video that is heard too (``use_audio``) is two media: its pictures and, right behind them, its sound.
    """
    # A tag that a user types is text and must stay text, so media are marked by a character that no text holds.
    marker = _unused_character("".join(map(text_of, turns)))
    flat, tags = [], []
    for turn in turns:
        pieces = []
        for part in turn["content"]:
            if part["type"] == "text":
                pieces.append(part["text"])
            else:
                own = [TAGS[part["type"]]]
                if part.get("use_audio"):
                    own.append(TAGS[AUDIO])
                pieces.append(marker * len(own))
                tags += own
        flat.append({**turn, "content": "\n".join(pieces)})
    return flat, tags, marker


def split(rendered: str, tags: Sequence[str], marker: str) -> Prompt:
    """Return the prompt of a rendered text with the markers of :func:`flatten`.

    Raises:
        PromptError: the template dropped media or printed some twice.
    """
    chunks = tuple(rendered.split(marker))
    if len(chunks) != len(tags) + 1:
        raise PromptError(f"the chat template kept {len(chunks) - 1} of {len(tags)} media of the messages")
    return Prompt(chunks, tuple(tags))


def _unused_character(text: str) -> str:
    return next(chr(code) for code in _PRIVATE_USE if chr(code) not in text)
