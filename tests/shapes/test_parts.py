"""Starting parts and evaluation of the tiny model."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from videollama2.checkpoints import build_from_parts
from videollama2.errors import ConfigError, DataError
from videollama2.shapes import accuracy as tiny_eval
from videollama2.shapes import parts as tiny
from videollama2.shapes.accuracy import Evaluator, Question
from videollama2.shapes.sets import write_set


def test_parts_are_a_function_of_the_seed(parts, tmp_path):
    from .conftest import SIZES

    tiny.write_parts(tmp_path, SIZES, encoder_steps=2, connector_steps=2, progress=False)
    for file in (
        "llm/model.safetensors",
        "llm/tokenizer.json",
        "clip/model.safetensors",
        "clip/config.json",
        "mm_projector.bin",
    ):
        assert (tmp_path / file).read_bytes() == (parts / file).read_bytes(), file


def test_tokenizer_writes_the_world_shortly_and_any_text_back():
    tokenizer = tiny.build_tokenizer(1024)
    assert len(tokenizer) <= 1024
    question = "What shape is the yellow object?"
    assert len(tokenizer(question).input_ids) == 7
    for text in (question, "Größe 12 über 世界 \n\t x", "<image> typed by a user"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"


def test_tokenizer_is_the_same_after_saving(parts):
    """transformers opens it as Qwen2's class whatever was saved; the ids must not change by that."""
    fresh = tiny.build_tokenizer(640)
    opened = AutoTokenizer.from_pretrained(parts / "llm")
    texts = [*list(tiny.world_texts())[:300], "don't 123 Größe é \n\n  x", "a.b,c;d"]
    assert [fresh(t).input_ids for t in texts] == [opened(t).input_ids for t in texts]
    assert opened.eos_token_id == fresh.eos_token_id == 2


def test_sizes_that_do_not_divide():
    with pytest.raises(ConfigError, match="image_size 50 is no multiple of patch_size 12"):
        tiny.TinySizes(image_size=50)
    assert tiny.main(["--out", "unused", "--image-size", "50"]) == 2


def test_normalise_and_order():
    assert tiny_eval.normalise("  Red Circle. ") == "red circle"
    assert tiny_eval.normalise("no") != tiny_eval.normalise("not")
    for frames in (1, 2, 8):
        order = tiny_eval.shuffled_order(frames, "a.mp4")
        assert sorted(order) == list(range(frames))
        assert order == tiny_eval.shuffled_order(frames, "a.mp4")
        assert frames == 1 or order != list(range(frames))


def test_scores():
    rows = [
        Question(str(i), "video", "f", kind, "?", "yes", ("yes", "no"))
        for i, kind in enumerate(["existence", "existence", "speed", "speed"])
    ]
    table = tiny_eval.score(rows, ["Yes.", "no", "yes", "yes"], ["yes", "no", "no", "yes"])
    assert list(table) == ["existence", "speed", "static", "temporal", "overall"]
    assert table["speed"].accuracy == 1.0
    assert table["speed"].drop == 0.5
    assert table["overall"].accuracy == 0.75
    assert table["overall"].chance == 0.5
    assert "overall" in tiny_eval.format_table(table)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    write_set(folder, videos=6, images=2, seed=9)
    return folder


@pytest.fixture
def evaluator(parts):
    torch.manual_seed(0)
    model, processor = build_from_parts(parts / "llm", parts / "clip", mm_projector_type="stc_connector_v35")
    with torch.no_grad():
        # Fresh weights answer everything alike; larger ones depend on what they see.
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return Evaluator(model, processor, batch_size=5)


def test_answers_do_not_depend_on_the_batch(evaluator, test_set):
    questions = tiny_eval.read_questions(test_set)
    assert {question.kind for question in questions} == {"image", "video"}
    together = evaluator.answers(questions[:12] + questions[-3:])
    alone = [evaluator.answers([q])[0] for q in questions[:12] + questions[-3:]]
    assert together == alone


def test_shuffling_changes_videos_only(evaluator, test_set):
    questions = tiny_eval.read_questions(test_set)
    evaluator.answers(questions)
    for question in questions:
        assert torch.equal(*evaluator.tokens[question.file]) == (question.kind == "image")


def test_command_writes_table_and_json(run, test_set, tmp_path, capsys):
    model = run(max_steps=1).folder
    output = tmp_path / "scores.json"
    assert tiny_eval.main(["--model", str(model), "--data", str(test_set), "--output", str(output)]) == 0
    assert "overall" in capsys.readouterr().out
    results = json.loads(output.read_text())
    assert results["scores"]["overall"]["questions"] == len(results["answers"])
    assert tiny_eval.main(["--model", str(model), "--data", str(tmp_path)]) == 2


def test_question_without_a_field(tmp_path):
    (tmp_path / "questions.json").write_text('[{"id": "a", "video": "x.mp4", "type": "count"}]')
    with pytest.raises(DataError, match="row 0"):
        tiny_eval.read_questions(tmp_path)
