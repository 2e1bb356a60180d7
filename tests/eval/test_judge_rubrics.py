"""Rubrics: own texts, files, and that nothing passes for published that is not."""

import json
import re
from dataclasses import replace

import pytest

from tests.eval.helpers.samples import sample
from videollama2.errors import ConfigError, DataError
from videollama2.eval.judging import rubrics
from videollama2.eval.judging.rubrics import ASPECTS, PUBLISHED_PASSAGES, rubric

SAMPLE = sample(question="what {answer}?", answer=["a", "b"], output="{question} %s")
PAIR = replace(SAMPLE, question=["one", "two"], output=["first", "second"])


def write(folder, **changes):
    user = "{question}|{answer}|{prediction}"
    record = {"name": "qa", "version": "mine", "source": "me", "system": "S", "user": user}
    assert record.keys() >= changes.keys()
    path = folder / "rubric.json"
    path.write_text(json.dumps({**record, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ASPECTS)
def test_own_rubrics_are_complete_and_say_that_they_are_own(name):
    found = rubric(name, "own")
    system, user = found.messages(PAIR if found.pairs else SAMPLE)
    assert system["role"] == "system" and user["role"] == "user"
    assert "{task}" not in system["content"]
    assert ('"pred"' in system["content"]) == found.wants_pred
    assert "['a', 'b']" in user["content"]
    assert not found.published and found.version == "own-1" and found.source == "this project"


# Of the system and user texts as they stand in the published scorers; any changed byte changes them.
PUBLISHED_FINGERPRINTS = {
    "qa": "04bf7aaf04f655a7",
    "videochatgpt_correctness": "39b332ee7079045b",
    "videochatgpt_detail": "0a1448094fd66944",
    "videochatgpt_context": "837fe5f453dbe243",
    "videochatgpt_temporal": "f50781771e8c383c",
    "videochatgpt_consistency": "829b916dd03a0dc7",
    "msvc_correctness": "69299cb82cfd92c0",
    "msvc_detailedness": "c99c2216d2c5cd4c",
    "audio_video_qa": "72ce1e1de9bafb3e",
    "clotho_correctness": "296dbfbaeb29c5b6",
    "clotho_detail": "2b483ba4e857729a",
    "tempcompass_captioning": "8ddac5b2ce5a72ea",
}


def test_a_judge_that_chooses_is_not_told_the_answer():
    found = rubric("tempcompass_captioning")
    assert found.chooses and found.fingerprint == PUBLISHED_FINGERPRINTS[found.name]
    system, user = found.messages(SAMPLE)
    assert system["content"] == "You are an AI assistant for question answering."
    assert user["content"].startswith("\nYou will receive a video description and a multi-choice question.")
    assert user["content"].endswith("```\n\nVideo Description:{question} %s\nMulti-Choice Question:\nwhat {answer}?\n")
    assert not rubric("tempcompass_captioning", "own").chooses


@pytest.mark.parametrize("name", sorted(PUBLISHED_FINGERPRINTS.keys() - {"tempcompass_captioning"}))
def test_published_texts_are_frozen(name):
    assert PUBLISHED_FINGERPRINTS.keys() == ASPECTS.keys()
    found = rubric(name)
    assert found.published and found.fingerprint == PUBLISHED_FINGERPRINTS[name]
    system, user = found.messages(PAIR if found.pairs else SAMPLE)
    assert system["content"].startswith("You are an intelligent chatbot") and "['a', 'b']" in user["content"]
    asked = "Correct Answers: " if name.startswith("msvc") else "Correct Answer: "
    assert asked in user["content"] and re.search(r"'score': 4(\.8)?}\.$", user["content"])


@pytest.mark.parametrize("name", ASPECTS)
def test_a_published_text_that_is_missing_is_never_replaced(name, monkeypatch, tmp_path):
    monkeypatch.setattr(rubrics, "PUBLISHED_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=f"published text of rubric '{name}' is not part of this installation"):
        rubric(name)


def test_braces_in_an_answer_stay_as_they_are(tmp_path):
    user = rubric("qa", str(write(tmp_path))).messages(SAMPLE)[1]["content"]
    assert user == "what {answer}?|['a', 'b']|{question} %s"


def test_two_questions_and_two_predictions():
    found = rubric("videochatgpt_consistency", "own")
    user = found.messages(sample(1, ["P-1", "P-2"], question=["Q-1", "Q-2"], answer="A"))[1]["content"]
    assert [user.index(part) for part in ("Q-1", "P-1", "Q-2", "P-2", "A")] == sorted(
        user.index(part) for part in ("Q-1", "P-1", "Q-2", "P-2", "A")
    )
    for wrong in ("one text", ["one"], ["1", "2", "3"]):
        with pytest.raises(DataError, match="sample 'q1'.*list of two in 'output'"):
            found.messages(sample(1, wrong, question=["Q-1", "Q-2"], answer="A"))


def test_a_sample_without_a_reference_is_named():
    with pytest.raises(DataError, match="sample 'q1'.*needs answer"):
        rubric("qa", "own").messages(replace(SAMPLE, answer=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": None}, "'system' is missing or no text"),
        ({"name": "msvc_correctness"}, "holds rubric 'msvc_correctness', not 'qa'"),
        ({"version": "published"}, "version 'published' is for the texts in"),
        ({"user": "{question} {answer}"}, "placeholders"),
        ({"user": "{question} {answer} {prediction} {prediction_2}"}, "placeholders"),
    ],
)
def test_bad_rubric_files_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        rubric("qa", str(write(tmp_path, **changes)))


def test_unknown_rubrics(tmp_path):
    with pytest.raises(ConfigError, match="rubric 'quality': choose from qa"):
        rubric("quality", "own")
    with pytest.raises(ConfigError, match="no such rubric file"):
        rubric("qa", str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="not a JSON file"):
        rubric("qa", str(tmp_path / "bad.json"))


def test_a_published_file_must_hold_the_known_passages(tmp_path, monkeypatch):
    """An approximate text put in the folder of published ones is refused."""
    monkeypatch.setattr(rubrics, "PUBLISHED_FOLDER", tmp_path)
    passages = PUBLISHED_PASSAGES["qa"]
    texts = {"system": " ".join(passages[:2]), "user": " ".join(passages[2:])}
    (tmp_path / "qa.json").write_text(json.dumps({"name": "qa", "version": "published", "source": "x", **texts}))
    assert rubric("qa").published
    texts["user"] = texts["user"].replace("video-based", "video based")
    (tmp_path / "qa.json").write_text(json.dumps({"name": "qa", "version": "published", "source": "x", **texts}))
    with pytest.raises(DataError, match="is not the published text; it lacks 'Please evaluate"):
        rubric("qa")


def test_fingerprint_follows_the_text(tmp_path):
    one = rubric("qa", str(write(tmp_path))).fingerprint
    assert rubric("qa", str(write(tmp_path, system="S "))).fingerprint != one
    assert rubric("qa", str(write(tmp_path))).describe()["fingerprint"] == one
