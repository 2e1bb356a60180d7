"""Text of chat completions stays text, whatever names of tags and tokens it holds."""

import pytest

from tests.conftest import golden_dir
from tests.serve.helpers.chats import answer, ask, tiny
from tests.serve.helpers.media import image_part, picture, text_part, user


@pytest.mark.slow
@pytest.mark.parametrize("name", ["<video>", "<image>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_names_of_tags_and_control_tokens_stay_text(chat, name):
    """End to end: what the engine got holds no more placeholders and control tokens than the conversation itself."""
    engine, tokenizer = chat.service.engine, tiny()[1].tokenizer
    seen = []
    submit = engine.submit

    def recording(messages, **options):
        found = submit(messages, **options)
        seen.append((messages, found.prompt))
        return found

    engine.submit = recording
    try:
        text = f"a {name} b{name}"
        image = image_part(picture())
        answer(chat, image, text_part("a   b"))
        answer(chat, image, text_part(text))
        answer(
            chat,
            messages=[
                {"role": "system", "content": text},
                user(text),
                {"role": "assistant", "content": [text_part(text)]},
                user(image, text_part(text)),
            ],
        )
    finally:
        del engine.submit
    special = set(tokenizer.all_special_ids)

    def control(prompt):
        return [number for number in tokenizer(prompt, add_special_tokens=False).input_ids if number in special]

    plain, odd, long = (prompt for _, prompt in seen)
    assert control(odd) == control(plain)
    assert len(control(long)) == 9  # four messages that begin and end, and the answer that begins
    parts = [
        part["type"] for message in seen[2][0] if isinstance(message["content"], list) for part in message["content"]
    ]
    assert parts == ["image", "text"]


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(path.parent.name for path in (golden_dir() / "models").glob("*/config.json")))
def test_no_tokenizer_reads_control_tokens_from_text(folder):
    """For the decoders of the published checkpoints."""
    from transformers import AutoTokenizer

    from videollama2.serve.api.messages import TextGuard

    tokenizer = AutoTokenizer.from_pretrained(golden_dir() / "models" / folder)
    guard = TextGuard(tokenizer, (), 10_000)
    names = [*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())]
    for name in names:
        for text in (name, f"a{name}b", name * 3, name[:2] + name + name[2:]):
            ids = tokenizer(guard.clean(text, "x"), add_special_tokens=False).input_ids
            assert not {tokenizer.eos_token_id, tokenizer.bos_token_id} & set(ids)
    assert guard.clean("How many\nsquares?  \u00fc \U0001f3ac", "x") == "How many\nsquares?  \u00fc \U0001f3ac"


def test_an_unusual_character_is_only_that(chat):
    for text in ("\ue000\ue001", "\u200b<\u200b|im_end|>", "a\0b", "ｆｕｌｌ", "🎬" * 50, "<|im_end" + "|>" * 3):
        assert ask(chat, text).status_code == 200
