"""What callers write and what the model was trained on: one prompt for both, through every door."""

import json

import pytest
from PIL import Image

from tests.conftest import ROOT, golden_dir
from videollama2 import model_init
from videollama2.errors import PromptError
from videollama2.inference.engine import Engine
from videollama2.processing import VideoLlama2Processor
from videollama2.prompting import SAFETY_SYSTEM_PROMPT, build_prompt, conversation_messages, template, user_messages

MODELS = sorted(row["model"] for row in json.loads((golden_dir() / "summary.json").read_text()))
MISTRAL, LLAMA, QWEN = "mistral-stc_connector-clip", "llama-mlp2x_gelu-clip", "qwen2-stc_connector-clip"
IMAGE = golden_dir() / "media" / "wide.png"
QUESTION = "What is it?"


def open_processor(name):
    return VideoLlama2Processor.from_pretrained(golden_dir() / "models" / name)


@pytest.fixture(scope="module")
def processors():
    return {name: open_processor(name) for name in (MISTRAL, LLAMA, QWEN)}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def assistant(words):
    return {"role": "assistant", "content": words}


def system(words):
    return {"role": "system", "content": words}


# --------------------------------------------------------------------------------------- the medium of a turn


@pytest.mark.parametrize("name", MODELS)
def test_both_orders_are_one_prompt_for_every_golden_model(name):
    processor = open_processor(name)
    first = {"type": "image", "image": Image.open(IMAGE)}
    last_turn = [user("Hello."), assistant("Yes?")]
    for before in ([], last_turn):
        orders = [[*before, user(*parts)] for parts in ((text(QUESTION), first), (first, text(QUESTION)))]
        prompts = [processor.prompt(messages) for messages in orders]
        assert prompts[0] == prompts[1] and f"<image>\n{QUESTION}" in prompts[0].text
        assert len({processor.apply_chat_template(m, add_generation_prompt=True) for m in orders}) == 1
        ids = [
            processor.apply_chat_template(m, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
            for m in orders
        ]
        assert ids[0].tolist() == ids[1].tolist()
    published = build_prompt(
        user_messages(QUESTION, "image"), processor.tokenizer, processor.model_config.text_config.model_type
    )
    assert processor.prompt([user(text(QUESTION), {"type": "image"})]) == published


def test_both_orders_are_one_prompt_for_the_engine():
    model, processor, _ = model_init(golden_dir() / "models" / QWEN)
    medium = {"type": "image", "path": IMAGE}
    with Engine(model, processor, max_batch=1, max_length=400, background=False) as engine:
        answers = [
            engine.submit([user(*parts)], max_new_tokens=4)
            for parts in ((text(QUESTION), medium), (medium, text(QUESTION)))
        ]
        answers.append(engine.submit(QUESTION, [("image", IMAGE)], max_new_tokens=4))
        assert len({answer.prompt for answer in answers}) == 1
        assert len({answer.result().token_ids for answer in answers}) == 1


@pytest.mark.parametrize("between", [(text("A"), text("B")), (text("A\n"), text(" "), text("B")), ()])
def test_a_medium_between_or_without_texts(processors, between):
    """Blank texts are dropped, and the medium comes first wherever it stood."""
    medium = {"type": "video"}
    prompts = {
        processors[QWEN].prompt([user(*between[:place], medium, *between[place:])]).text
        for place in range(len(between) + 1)
    }
    assert len(prompts) == 1


def test_several_media_of_a_turn_stay_where_they_are(processors):
    parts = (text("Is"), {"type": "image"}, text("in"), {"type": "video"}, text("?"))
    assert "Is\n<image>\nin\n<video>\n?" in processors[QWEN].prompt([user(*parts)]).text


def test_each_turn_has_its_own_order(processors):
    messages = [user(text("A"), {"type": "image"}), assistant("B"), user(text("C"), {"type": "video"})]
    prompt = processors[QWEN].prompt(messages).text
    assert "<image>\nA" in prompt and "<video>\nC" in prompt
    turns = [
        {"from": who, "value": value}
        for who, value in (("human", "A <image>"), ("gpt", "B"), ("human", "C\n<video>"), ("gpt", "D"))
    ]
    trained = conversation_messages(turns, ["image", "video"])
    assert processors[QWEN].apply_chat_template([*messages, assistant("D")]) == processors[QWEN].apply_chat_template(
        trained
    )


# ------------------------------------------------------------------------------------------ turns without words


@pytest.mark.parametrize("name", [MISTRAL, LLAMA, QWEN])
def test_an_empty_system_text_is_none(processors, name):
    plain = processors[name].prompt([user(QUESTION)])
    for content in ("", " \n", None, [], [text("")]):
        assert processors[name].prompt([{"role": "system", "content": content}, user(QUESTION)]) == plain


@pytest.mark.parametrize("name", [MISTRAL, LLAMA, QWEN])
def test_a_question_in_the_next_message_belongs_to_the_turn(processors, name):
    together = processors[name].prompt([user({"type": "image"}, text(QUESTION))])
    assert processors[name].prompt([user({"type": "image"}), user(QUESTION)]) == together
    assert processors[name].prompt([user(QUESTION), user({"type": "image"})]) == together


@pytest.mark.parametrize("name", [MISTRAL, LLAMA, QWEN])
@pytest.mark.parametrize("content", ["", None, []])
def test_an_empty_answer_is_accepted(processors, name, content):
    prompt = processors[name].prompt([user("A"), {"role": "assistant", "content": content}, user("B")]).text
    assert prompt.index("A") < prompt.index("B")


@pytest.mark.parametrize("name", [MISTRAL, LLAMA, QWEN])
def test_a_turn_may_be_a_medium_alone(processors, name):
    prompt = processors[name].prompt([user({"type": "video"})])
    assert prompt.tags == ("<video>",)


@pytest.mark.parametrize("messages", [[user("")], [user(" "), user("\n")], [user(text("")), assistant("A"), user("B")]])
def test_a_turn_without_words_and_media_is_refused(processors, messages):
    with pytest.raises(PromptError, match=r"message 0 \(user\) has no text"):
        processors[QWEN].prompt(messages)


# ------------------------------------------------------------------------------------------------ system texts


@pytest.mark.parametrize("name", [MISTRAL, LLAMA])
@pytest.mark.parametrize(
    "messages",
    [
        [user("A"), assistant("B"), system("Be brief."), user("C")],
        [user("A"), system("Be brief."), assistant("B"), user("C")],
        [system("Be brief."), user("A"), assistant("B"), user("C")],
    ],
)
def test_a_late_system_text_is_put_in_front(processors, name, messages):
    """These templates print whatever is not a user's as an answer of the assistant."""
    in_front = [system("Be brief."), user("A"), assistant("B"), user("C")]
    prompt = processors[name].prompt(messages)
    assert prompt == processors[name].prompt(in_front)
    assert prompt.text.count("Be brief.") == 1 and "[INST] Be brief.\n\nA [/INST] B" in prompt.text
    assert SAFETY_SYSTEM_PROMPT not in prompt.text


@pytest.mark.parametrize("name", [MISTRAL, LLAMA])
def test_several_system_texts_are_joined(processors, name):
    prompt = processors[name].prompt([system("One."), system("Two."), user("A"), system("Three."), user("B")]).text
    assert "[INST] One.\n\nTwo.\n\nThree.\n\nA\nB [/INST]" in prompt


def test_a_template_that_knows_late_system_texts_shows_them_there(processors):
    prompt = processors[QWEN].prompt([user("A"), assistant("B"), system("Be brief."), user("C")]).text
    assert "B<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nC" in prompt


def test_a_medium_in_a_system_text_is_refused(processors):
    with pytest.raises(PromptError, match=r"message 0 \(system\) holds a medium"):
        processors[QWEN].prompt([{"role": "system", "content": [{"type": "image"}, text("x")]}, user("A")])


@pytest.mark.parametrize("name", [MISTRAL, LLAMA])
def test_a_tools_result_is_refused_where_the_template_has_no_form_for_it(processors, name):
    with pytest.raises(PromptError, match="no form for messages of the role tool"):
        processors[name].prompt([user("A"), {"role": "tool", "content": "1"}, user("B")])


# ------------------------------------------------------------------------------------------- a last answer


@pytest.mark.parametrize("name", [MISTRAL, LLAMA, QWEN])
def test_a_last_answer_is_refused_or_continued(processors, name):
    messages = [user({"type": "image"}, text(QUESTION)), assistant("It is a ")]
    with pytest.raises(PromptError, match="continue_final_message"):
        processors[name].prompt(messages)
    whole = processors[name].prompt([*messages, user("next")]).text
    continued = processors[name].prompt(messages, continue_final_message=True)
    assert continued.tags == ("<image>",) and continued.text.endswith("It is a ")
    assert whole.startswith(continued.text) and len(whole) > len(continued.text)


def test_only_an_answer_can_be_continued(processors):
    with pytest.raises(PromptError, match="the last one is a user's"):
        processors[QWEN].prompt([user("A")], continue_final_message=True)


def test_the_engine_continues_a_last_answer():
    """What the model would have said anyway goes on where its beginning is given."""
    model, processor, _ = model_init("videollama2-tiny")
    clip = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
    question = user({"type": "video", "path": clip}, text("Describe the video."))
    with Engine(model, processor, max_batch=1, max_length=600, background=False) as engine:
        whole = engine.submit([question], max_new_tokens=12).result().text
        begun = whole[: whole.index(" ", len(whole) // 2)]
        messages = [question, assistant(begun)]
        with pytest.raises(PromptError, match="nothing to answer"):
            engine.submit(messages)
        with pytest.raises(PromptError, match="nothing to answer"):
            engine.submit(messages, add_generation_prompt=False)
        rest = engine.submit(messages, continue_final_message=True, max_new_tokens=12)
        assert rest.prompt.endswith(begun) and (begun + rest.result().text).startswith(whole)


# ------------------------------------------------------------------------------------------------- templates


def with_template(source):
    processor = open_processor(QWEN)
    processor.tokenizer.chat_template = source
    return processor


def test_options_of_a_template_are_read_or_refused():
    processor = with_template("{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson }}")
    options = {"mood": "calm ", "tools": [{"name": "look"}]}
    assert processor.prompt([user("A")], template_options=options).text == 'calm A[{"name": "look"}]'
    assert template.template_variables(processor.tokenizer) == {"mood"}
    with pytest.raises(PromptError, match="does not read enable_thinking"):
        processor.prompt([user("A")], template_options={"enable_thinking": True})


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "prints more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for m in messages %}", "cannot be read"),
        ("{{ messages + 1 }}", "refuses these messages"),
        ("{{ raise_exception('only one') }}", "refuses these messages: only one"),
    ],
)
def test_a_faulty_template_is_told_in_one_line(monkeypatch, source, rule):
    monkeypatch.setattr(template, "MAX_SECONDS", 0.2)
    with pytest.raises(PromptError, match=rule) as caught:
        with_template(source).prompt([user("A")])
    assert "\n" not in str(caught.value) and "chat template of" in str(caught.value)
