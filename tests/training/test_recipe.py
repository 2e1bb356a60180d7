"""Recipes: any flag in a YAML file, under those of the command line; each run leaves one that starts it again."""

import pytest
import yaml

from tests.conftest import ROOT
from videollama2.errors import ConfigError
from videollama2.training.arguments import parse_arguments
from videollama2.training.flags.recipe import RECIPE_FILE, save_recipe
from videollama2.training.run.identity import _flags


def test_the_command_line_wins_and_the_run_can_be_started_again(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "learning-rate: 1e-5\nmax_steps: 7\ndata_path: [a.json, b.json]\ndata_weights: [1, 2.5]\nlora_enable: true\n"
        "lr_scheduler_kwargs: {num_cycles: 1}\nvision_tower_lr:\nsave_strategy: no\n"
    )
    argv = ["--model_path", "base", "--output_dir", str(tmp_path), "--max_steps", "2"]
    argv += ["--report_to", "tensorboard", "mlflow"]
    model, data, training = parse_arguments(["--recipe", str(recipe), *argv, "--data-weights", "3", "4"])
    assert (training.learning_rate, training.max_steps) == (1e-5, 2)  # the command line asks for two steps
    assert training.report_to == ["tensorboard", "mlflow"]
    assert data.files == ["a.json", "b.json"] and data.data_weights == [3, 4]
    assert training.lora_enable and training.save_strategy == "no" and training.lr_scheduler_kwargs == {"num_cycles": 1}
    save_recipe(tmp_path, training)
    again = parse_arguments([f"--recipe={tmp_path / RECIPE_FILE}"])
    assert dict(_flags(again)) == dict(_flags((model, data, training)))
    assert again[1].files == data.files


def test_a_recipe_has_whole_names_and_any_value(tmp_path):
    """``--no_x``, names that were shortened, and values that begin with dashes start the same run again."""
    argv = ["--model_path", "base", "--data_path", "a.json", "--output_dir", str(tmp_path)]
    first = parse_arguments([*argv, "--no_freeze_vision_tower", "--learning_r", "1e-3", "--run_name=--mine"])
    assert not first[0].freeze_vision_tower
    save_recipe(tmp_path, first[2])
    assert {"freeze_vision_tower", "learning_rate"} <= yaml.safe_load((tmp_path / RECIPE_FILE).read_text()).keys()
    again = parse_arguments(["--recipe", str(tmp_path / RECIPE_FILE)])
    assert dict(_flags(again)) == dict(_flags(first)) and again[2].run_name == "--mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1\n", "own.yaml: there is no flag learning_rat"),
        ("recipe: other.yaml\n", "own.yaml: there is no flag recipe"),
        ("- a\n", "own.yaml: must be a mapping"),
        ("a: [\n", "own.yaml: is not YAML"),
        (None, "own.yaml: cannot be read"),
    ],
)
def test_what_is_no_recipe(tmp_path, text, words):
    if text is not None:
        (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        parse_arguments(["--recipe", str(tmp_path / "own.yaml")])


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda file: file.name)
def test_those_of_the_project_hold_flags_that_fit_together(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load(file.read_text())
    more = ["--deepspeed", ""] if "deepspeed" in given else []
    model, data, training = parse_arguments(
        ["--recipe", str(file), "--output_dir", str(tmp_path), "--bf16", "False", *more]
    )
    found = {**vars(model), **vars(data), **vars(training)}
    for name in given.keys() - {"bf16", "tf32", "deepspeed"}:
        value = getattr(found[name], "value", found[name])
        assert value == given[name] or str(value) == str(given[name]), name
