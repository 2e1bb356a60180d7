"""``videollama2 ask`` opens what each kind of training has written, and gives the answer that was learnt."""

import json

import pytest

from videollama2 import cli, train

from .helpers.runs import FEW_PARTS, flags

QUESTION, ANSWER = "What is this?", "a circle turns"
LORA = {"lora_enable": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0, "freeze_vision_tower": True}
KINDS = {
    "full": {},
    "half": {"bf16": True, "freeze_vision_tower": True},
    "lora": LORA,
    "qlora": {**LORA, "bits": 4},
    "lora_only biases": {**LORA, "lora_bias": "lora_only"},
}


@pytest.fixture
def one(world, tmp_path):
    """An annotation file of one record, and its video."""
    row = next(row for row in json.loads((world / "train.json").read_text()) if "video" in row)
    video = world / row["video"]
    turns = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER}]
    path = tmp_path / "one.json"
    path.write_text(json.dumps([{"id": "one", "video": str(video), "conversations": turns}]))
    return path, video


@pytest.fixture(scope="module")
def grown(world, parts, tmp_path_factory):
    """A model that has learnt other answers, and to say this one where it is asked to."""
    folder = tmp_path_factory.mktemp("grown")
    turns = [{"from": "human", "value": "Say it."}, {"from": "gpt", "value": ANSWER}]
    (folder / "say.json").write_text(json.dumps([{"id": "say", "conversations": turns}]))
    files = [world / "mixed.json", folder / "say.json"]
    changes = {
        **FEW_PARTS,
        "max_steps": 60,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "data_path": files,
        "data_weights": [1, 1],
        "data_folder": world,
    }
    train.train(*train.parse_arguments(flags(world, parts, folder, **changes)))
    return folder


@pytest.fixture
def ask(capsys):
    def ask(folder, video):
        capsys.readouterr()
        words = ["ask", video, QUESTION, "--model-path", folder, "--device", "cpu", "--max-new-tokens", 12]
        assert cli.main(list(map(str, words))) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return ask


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_answer_that_was_learnt(run, one, grown, ask, tmp_path, capsys, kind):
    file, video = one
    assert ask(grown, video) != f"{ANSWER}\n"
    # Weights drawn for a width of 32 can say nothing with certainty before they have grown.
    base = {"model_path": grown, "vision_tower": None, "mm_projector_type": None}
    options = {"max_steps": 40, "learning_rate": 1e-2, "per_device_train_batch_size": 1, **KINDS[kind]}
    result = run(data_path=file, **base, **options)
    assert result.losses[-1] < 0.2
    assert ask(result.folder, video) == f"{ANSWER}\n"
    if "lora_enable" in options:
        assert cli.main(["merge", str(result.folder), str(tmp_path / "merged")]) == 0
        assert str(tmp_path / "merged") in capsys.readouterr().out
        assert not (tmp_path / "merged" / "adapter_config.json").exists()
        assert ask(tmp_path / "merged", video) == f"{ANSWER}\n"


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["published", "answer"])
def test_first_stage(run, one, ask, labels):
    """A decoder with random weights says nothing sensible, but says the same as before saving it would."""
    file, video = one
    first = {"tune_mm_mlp_adapter": True, "freeze_vision_tower": True, "pretrain_labels": labels}
    result = run(data_path=file, per_device_train_batch_size=1, **first)
    assert ask(result.folder, video) == ask(result.folder, video)
