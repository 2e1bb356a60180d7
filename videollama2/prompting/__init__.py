"""Turns messages into a prompt: system text, media tags, chat template, training labels. It handles no tensors.

A prompt is text with media in between. Text is tokenised piece by piece around the media, as published: a Metaspace
tokenizer adds a prefix to every piece, so tokenising the whole would give other ids. Where a medium stood, the ids
hold the published sentinel (:data:`~videollama2.constants.MODAL_INDEX_MAP`); ``processing`` expands it.

A tag is a medium only where a message part or an annotation says so. The same letters typed by a user stay text.
"""

from videollama2.prompting.labels import SPEAKERS, checked_turns, conversation_messages, training_ids
from videollama2.prompting.messages import (
    ANY_TAG,
    Message,
    as_turns,
    check_last,
    check_messages,
    check_text,
    tagged_parts,
    user_messages,
)
from videollama2.prompting.prompt import (
    SAFETY_SYSTEM_PROMPT,
    SYSTEM_PROMPTS,
    Prompt,
    build_labelled_prompt,
    build_prompt,
    tokenizer_multimodal_token,
)
from videollama2.prompting.template import render_chat_template, template_variables

__all__ = [
    "ANY_TAG",
    "SAFETY_SYSTEM_PROMPT",
    "SPEAKERS",
    "SYSTEM_PROMPTS",
    "Message",
    "Prompt",
    "as_turns",
    "build_labelled_prompt",
    "build_prompt",
    "check_last",
    "check_messages",
    "check_text",
    "checked_turns",
    "conversation_messages",
    "render_chat_template",
    "tagged_parts",
    "template_variables",
    "tokenizer_multimodal_token",
    "training_ids",
    "user_messages",
]
