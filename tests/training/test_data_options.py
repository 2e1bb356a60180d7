"""Flags about data: records that cannot be used, weights of sets, labels of the first stage, evaluation."""

import json

import pytest
import torch

from videollama2 import train
from videollama2.checkpoints import load_pretrained_model
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset

from .helpers.runs import copy_checkpoint, difference, flags


@pytest.fixture
def damaged(world, tmp_path):
    """A file of five good records, one broken video, one missing file and one that has no room for its answer."""
    rows = json.loads((world / "train.json").read_text())[:6]
    for row in rows:
        for key in ("video", "image"):
            if key in row:
                row[key] = str(world / row[key])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((world / json.loads((world / "train.json").read_text())[0]["video"]).read_bytes()[:600])
    video = next(row for row in rows if "video" in row)
    rows[2] = {**video, "id": "broken", "video": str(broken)}
    rows.append({**video, "id": "gone", "video": "gone.mp4"})
    long = [{"from": "human", "value": "word " * 900}, {"from": "gpt", "value": "yes"}]
    rows.append({"id": "long", "conversations": long})
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_records_are_listed_and_replaced_by_nothing(run, damaged, tmp_path, workers):
    options = {"on_bad_sample": "skip", "max_steps": -1, "num_train_epochs": 2, "dataloader_num_workers": workers}
    result = run(data_path=damaged, **options)
    lines = (result.folder / "bad_samples-0.jsonl").read_text().splitlines()
    problems = [json.loads(line)["problem"] for line in lines]
    assert len(problems) == 3
    for name in ("'broken'", "'gone'", "'long'"):
        assert sum(name in problem for problem in problems) == 1
    assert "broken.mp4" in " ".join(problems)
    assert result.log[-1]["bad_samples"] == 3
    assert [row["step"] for row in result.log] == [1, 2, 3, 4]
    # The same run on the good records in the same places: nothing else is seen in place of a bad one.
    assert all(torch.isfinite(tensor).all() for tensor in result.weights.values())


@pytest.mark.slow
@pytest.mark.usefixtures("plotted")
def test_a_step_of_bad_records_alone_changes_nothing(run, damaged, tmp_path):
    rows = [row for row in json.loads(damaged.read_text()) if row["id"] == "long"]
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    options = {"data_path": tmp_path / "bad.json", "on_bad_sample": "skip"}
    result = run(**options)
    # Such a step has no loss that could be logged or drawn, not one of zero.
    lines = [row for row in result.history if "samples_per_second" in row]
    assert [row["step"] for row in lines] == [1, 2]
    assert not any({"loss", "grad_norm"} & row.keys() for row in lines)
    assert not (result.folder / "loss.png").exists()


@pytest.mark.slow
def test_steps_of_bad_records_do_not_dilute_the_loss(run, world, damaged, tmp_path):
    """Lines of four steps each, in which some steps have no label."""
    long = [row for row in json.loads(damaged.read_text()) if row["id"] == "long"]
    text = [row for row in json.loads((world / "mixed.json").read_text()) if row["id"] == "text-0"]
    (tmp_path / "some.json").write_text(json.dumps(long * 3 + text))
    options = {
        "data_path": tmp_path / "some.json",
        "on_bad_sample": "skip",
        "per_device_train_batch_size": 1,
        "max_steps": 4,
        "learning_rate": 0.0,
    }
    single = run(**options).losses
    assert len(single) == 1
    assert run(logging_steps=4, **options).losses == pytest.approx([sum(single) / len(single)])


def test_bad_records_stop_the_run_by_default(world, parts, damaged, tmp_path, capsys):
    assert train.main(flags(world, parts, tmp_path / "out", data_path=damaged)) == 2
    assert "record 'gone'" in capsys.readouterr().err


def test_a_file_of_bad_records_alone_is_an_error(world, parts, damaged, tmp_path, capsys):
    rows = [row for row in json.loads(damaged.read_text()) if row["id"] == "gone"]
    (tmp_path / "bad.json").write_text(json.dumps(rows))
    changes = {"data_path": tmp_path / "bad.json", "on_bad_sample": "skip"}
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    assert "every record of this file breaks a rule" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_change_what_is_learnt_from(run, world, tmp_path):
    text = [row for row in json.loads((world / "mixed.json").read_text()) if row["id"].startswith("text")]
    (tmp_path / "text.json").write_text(json.dumps(text))
    files = [world / "train.json", tmp_path / "text.json"]
    options = {"data_path": files, "data_folder": world, "max_steps": 3, "per_device_train_batch_size": 4}
    plain, heavy = run(**options), run(data_weights=[1, 1000], **options)
    assert sum(row["visual_tokens_per_second"] for row in plain.log) > 0
    assert sum(row["visual_tokens_per_second"] for row in heavy.log) == 0


@pytest.mark.slow
def test_a_curriculum_changes_what_is_learnt_from_and_resumes_exactly(run, world, tmp_path, capsys):
    text = [row for row in json.loads((world / "mixed.json").read_text()) if row["id"].startswith("text")]
    (tmp_path / "text.json").write_text(json.dumps(text))
    files = [world / "train.json", tmp_path / "text.json"]
    options = {"data_path": files, "data_folder": world, "max_steps": 4, "data_curriculum": ["0:0,1", "2:1,0"]}
    options |= {"save_strategy": "steps", "save_steps": 1, "group_by_modality_length": True}
    whole = run(**options)
    assert "mixture from step 2: train.json 100.0%, text.json 0.0%" in capsys.readouterr().out
    assert [row["visual_tokens_per_second"] > 0 for row in whole.log] == [False, False, True, True]
    copy_checkpoint(whole.folder / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
    again = run(folder=tmp_path / "resumed", **options)
    assert again.losses == whole.losses and difference(again.weights, whole.weights) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_curriculum": ["0:1"], "data_weights": [1]}, "both set the shares"),
        ({"data_curriculum": ["1:1"]}, "the first one is 0"),
        ({"data_curriculum": ["0:1"], "streaming": True}, "--data_curriculum needs all records"),
        ({"data_weights_by": "tokens"}, "no effect without --data_weights"),
        ({"data_weights": [1, 2]}, "2 numbers for 1 files"),
        ({"data_weights": [0]}, "positive"),
        ({"data_weights": [1], "train_sampling_strategy": "sequential"}, "order of samples"),
        ({"pretrain_labels": "answer"}, "--tune_mm_mlp_adapter"),
    ],
)
def test_contradictions(world, parts, tmp_path, capsys, changes, words):
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_labels_of_the_first_stage(run, captions):
    """Question and answer as published, or the answer and its end: another loss, another connector."""
    options = {"tune_mm_mlp_adapter": True, "freeze_vision_tower": True, "data_path": captions}
    published, answer = run(**options), run(pretrain_labels="answer", **options)
    assert difference(published.weights, answer.weights) > 1e-5


@pytest.mark.slow
def test_evaluation_counts_answers_as_greedy_generation_writes_them(run, world, records):
    """Trained until some answers are right, on the records it is asked about."""
    result = run(
        data_path=world / "mixed.json",
        eval_data_path=world / "mixed.json",
        eval_strategy="steps",
        eval_steps=25,
        max_steps=25,
        learning_rate=1e-2,
        per_device_train_batch_size=14,
        per_device_eval_batch_size=5,
    )
    (metrics,) = [row for row in result.history if "eval_loss" in row]
    _, model, processor, _ = load_pretrained_model(result.folder, device="cpu")
    model.generation_config.eos_token_id = None  # what closes an answer is compared too
    dataset, collator = VideoInstructionDataset(records, processor, 400), TrainingCollator(processor.pad_token_id)
    right = answers = 0
    loss = labels = 0.0
    for i in range(len(dataset)):
        sample = dataset[i]
        spans = answer_spans(sample["labels"])
        with torch.no_grad():
            loss += model(**collator([sample]), num_items_in_batch=1).loss.item()
        labels += sum(label >= 0 for label in sample["labels"][1:])
        for start, end in spans:
            prompt = collator([{**sample, "input_ids": sample["input_ids"][:start], "labels": []}])
            prompt.pop("labels")
            wanted = sample["labels"][start:end]
            out = model.generate(**prompt, max_new_tokens=len(wanted), do_sample=False)
            right += out[0].tolist()[-len(wanted) :] == wanted
        answers += len(spans)
    assert metrics["eval_answers"] == answers
    assert 0 < right < answers
    assert metrics["eval_answer_accuracy"] == pytest.approx(right / answers)
    assert metrics["eval_loss"] == pytest.approx(loss / labels, rel=1e-4)


def answer_spans(labels):
    edges = [i for i in range(1, len(labels) + 1) if (i < len(labels) and labels[i] >= 0) != (labels[i - 1] >= 0)]
    return list(zip(edges[::2], edges[1::2], strict=True))
