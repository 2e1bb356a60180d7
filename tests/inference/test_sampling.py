"""Penalties, bias and min_p against their formulas; answers of a given form by the engine."""

import json

import pytest
import torch

from videollama2 import model_init
from videollama2.errors import ConfigError
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.inference.sampling import Chooser, SamplingOptions, choose
from videollama2.inference.structure import Structure

from .helpers import load

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, 0.0])


def chooser(*chosen, ends=(4,), **options):
    made = Chooser(SamplingOptions(**options), frozenset(ends))
    for token in chosen:
        made.take(token)
    return made


# ----------------------------------------------------------------------------------------------- penalties and bias


def test_frequency_and_presence_penalties_are_openais():
    """logit - count * frequency_penalty - (count > 0) * presence_penalty, over the answer's tokens."""
    adjusted = chooser(0, 3, 0, frequency_penalty=0.5, presence_penalty=0.25).adjust(LOGITS)
    torch.testing.assert_close(adjusted, torch.tensor([2.0 - 1.25, 1.0, 0.5, -1.0 - 0.75, 0.0]))
    assert torch.equal(chooser(frequency_penalty=2.0).adjust(LOGITS), LOGITS), "nothing was answered yet"


def test_the_repetition_penalty_comes_first():
    adjusted = chooser(0, 3, repetition_penalty=2.0, presence_penalty=1.0).adjust(LOGITS)
    torch.testing.assert_close(adjusted, torch.tensor([0.0, 1.0, 0.5, -3.0, 0.0]))


def test_a_bias_is_added():
    adjusted = chooser(logit_bias={1: 5.0, 4: -100}).adjust(LOGITS)
    torch.testing.assert_close(adjusted, torch.tensor([2.0, 6.0, 0.5, -1.0, -100.0]))


def test_adjusting_leaves_the_logits_alone():
    logits = LOGITS.clone()
    chooser(0, logit_bias={1: 5}, presence_penalty=1, repetition_penalty=2.0, min_new_tokens=3).adjust(logits)
    assert torch.equal(logits, LOGITS)


def test_min_p_keeps_what_is_likely_enough():
    """Tokens at least min_p times as likely as the most likely one, at the request's temperature."""
    probabilities = (LOGITS / 0.7).softmax(-1)
    kept = set(torch.nonzero(probabilities >= 0.2 * probabilities.max()).flatten().tolist())
    assert 1 < len(kept) < 5
    drawn = [chooser(temperature=0.7, min_p=0.2, seed=seed) for seed in range(400)]
    assert set(choose(LOGITS.repeat(400, 1), drawn)) == kept
    free = [chooser(temperature=0.7, seed=seed) for seed in range(400)]
    assert set(choose(LOGITS.repeat(400, 1), free)) > kept


def test_one_row_s_options_do_not_touch_another():
    rows = [chooser(logit_bias={2: 9}), chooser(), chooser(0, presence_penalty=2.0)]
    assert choose(LOGITS.repeat(3, 1), rows) == [2, 0, 1]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"min_p": 1.5}, "min_p must be from 0 to 1"),
        ({"frequency_penalty": 3}, "frequency_penalty must be from -2 to 2"),
        ({"presence_penalty": float("nan")}, "presence_penalty must be from -2 to 2"),
        ({"logit_bias": {"a": 1}}, "logit_bias must be token ids"),
        ({"logit_bias": {1: 101}}, "logit_bias must be token ids"),
        ({"structure": Structure.choice(["a"]), "ignore_eos": True}, "says where its answer ends"),
        ({"structure": Structure.choice(["a"]), "min_new_tokens": 2}, "says where its answer ends"),
    ],
)
def test_values_out_of_range_are_refused(options, rule):
    with pytest.raises(ConfigError, match=rule):
        SamplingOptions(**options)


def test_options_by_the_engine(engine):
    plain = engine.submit("what moves", max_new_tokens=6).result()
    first = plain.token_ids[0]
    biased = engine.submit("what moves", max_new_tokens=6, logit_bias={first: -100}).result()
    assert first not in biased.token_ids and biased.token_ids
    other = next(token for token in range(10, 40) if token != first)
    assert set(engine.submit("what", max_new_tokens=3, logit_bias={other: 100}).result().token_ids) == {other}
    with pytest.raises(ConfigError, match="logit_bias names token 999999"):
        engine.submit("what", logit_bias={999999: 1})


def test_an_end_of_text_may_be_ignored(engine):
    end = engine.processor.tokenizer.eos_token_id
    options = {"max_new_tokens": 5, "logit_bias": {end: 100}}
    ended = engine.submit("what", **options).result()
    assert (ended.finish_reason, ended.token_ids) == ("stop", ())
    ignored = engine.submit("what", ignore_eos=True, **options).result()
    assert (ignored.finish_reason, ignored.token_ids, ignored.text) == ("length", (end,) * 5, "")
    shown = engine.submit("what", ignore_eos=True, skip_special_tokens=False, **options).result()
    assert shown.text == engine.processor.tokenizer.eos_token * 5


# ------------------------------------------------------------------------------------------------ structured output


@pytest.fixture(scope="module")
def structured():
    """Random weights: whatever has form has it from the grammar."""
    pytest.importorskip("llguidance")
    with Engine(*load("qwen2-stc_connector-clip"), max_batch=4, max_length=700) as made:
        yield made


SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "moves": {"type": "boolean"},
    },
    "required": ["color", "count", "moves"],
    "additionalProperties": False,
}


def test_answers_keep_to_a_schema(structured):
    """In company of answers without form, whose tokens stay what they are."""
    plain = Request("what moves", max_new_tokens=8)
    alone = structured.generate([plain])[0].token_ids
    formed = [
        Request("what", structure=Structure.json_schema(SCHEMA), max_new_tokens=400, temperature=t, seed=3)
        for t in (0.0, 1.0, 1.0)
    ]
    results = structured.generate([*formed, plain])
    assert results[-1].token_ids == alone
    for result in results[:-1]:
        assert result.finish_reason == "stop"
        value = json.loads(result.text)
        assert value.keys() == SCHEMA["properties"].keys() and value["color"] in ("red", "blue")
        assert isinstance(value["moves"], bool) and 0 <= value["count"] <= 20


def test_an_answer_is_one_of_the_choices(structured):
    choices = ["yes", "no", 'say "maybe"', "größer"]
    drawn = {
        structured.submit("what", structure=Structure.choice(choices), temperature=1.0, seed=n).result().text
        for n in range(12)
    }
    assert drawn <= set(choices) and len(drawn) > 1


def test_a_tokenizer_that_begins_texts_with_a_blank():
    """Mistral's: the blank of the first token is not part of the text, and the grammar leaves it in."""
    pytest.importorskip("llguidance")
    model, processor = load("mistral-stc_connector-clip")
    blank = processor.tokenizer.convert_tokens_to_ids("\u2581")
    with Engine(model, processor, max_batch=1, max_length=500, background=False) as engine:
        for bias in (100, -100):
            result = engine.submit("what", structure=Structure.choice(["yes", "no"]), logit_bias={blank: bias}).result()
            assert result.text in ("yes", "no") and (result.token_ids[0] == blank) == (bias > 0)


def test_regular_expressions_and_grammars(structured):
    date = structured.submit("when", structure=Structure.regex(r"\d{4}/\d\d"), max_new_tokens=40).result().text
    assert date[4] == "/" and len(date) == 7 and (date[:4] + date[5:]).isdigit()
    lark = 'start: "a" rest\nrest: "b" | "c"\n'
    assert structured.submit("what", structure=Structure.grammar(lark)).result().text in ("ab", "ac")


def test_any_json_object(structured):
    result = structured.submit("what", structure=Structure.json_object(), max_new_tokens=300).result()
    assert result.text.lstrip().startswith("{")
    if result.finish_reason == "stop":
        assert isinstance(json.loads(result.text), dict)


@pytest.mark.parametrize(
    ("structure", "rule"),
    [
        (lambda: Structure.json_schema({"type": "nonsense"}), "the JSON schema cannot be used: .*nonsense"),
        (lambda: Structure.json_schema([1]), "must be an object, got list"),
        (lambda: Structure.choice([]), "choices must be"),
        (lambda: Structure.choice("yes"), "choices must be"),
        (lambda: Structure.regex("("), "the regular expression cannot be used"),
        (lambda: Structure.grammar("begin: 'a'"), "the grammar cannot be used"),
    ],
)
def test_structures_that_are_none_are_refused(structured, structure, rule):
    with pytest.raises(ConfigError, match=rule):
        structured.submit("what", structure=structure())


def test_the_shipped_model_answers_in_json():
    """Its knowledge goes into the form: the answer is right and the form holds."""
    pytest.importorskip("llguidance")
    from tests.conftest import ROOT

    model, processor, _ = model_init("videollama2-tiny")
    picture = ROOT / "videollama2" / "assets" / "demo" / "shapes.png"
    colours = Structure.choice(["blue", "green", "red", "yellow", "white"])
    with Engine(model, processor, max_batch=1, max_length=600, background=False) as engine:
        question = "What is the colour of the cross?"
        assert engine.submit(question, [("image", picture)], structure=colours).result().text == "red"
