"""Prints the last lines of a run: where its result is, and commands to use it."""

from __future__ import annotations

import shlex
from pathlib import Path

from videollama2.checkpoints.files import ADAPTER_CONFIG, AUDIO_CONNECTOR_FILE, AUDIO_TOWER_FILE, CONNECTOR_FILE


def closing_words(folder: Path, base: str) -> str:
    """Describe what a run has written to ``folder`` and list commands that use it.

    Args:
        folder: output folder of the run.
        base: name of the model for which a connector or an adapter was trained.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        what, commands = f"a LoRA adapter for {base}", [_ask(folder), _merge(folder)]
    elif (folder / CONNECTOR_FILE).is_file():
        what = f"a connector for {base}"
        commands = [
            f"python -m videollama2.train --model_path {_word(base)} "
            f"--pretrain_mm_mlp_adapter {_word(folder / CONNECTOR_FILE)} ..."
            "   # the second stage"
        ]
    elif (folder / AUDIO_CONNECTOR_FILE).is_file():
        what, commands = _audio_parts(folder, base)
    else:
        what, commands = (
            "a whole model",
            [_ask(folder), f"videollama2 eval run moving_shapes --model-path {_word(folder)}"],
        )
    lines = [f"{folder} holds the result, {what}. Next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def _audio_parts(folder: Path, base: str) -> tuple[str, list[str]]:
    """Describe the result of an audio stage, and the command of the stage after it."""
    train = f"python -m videollama2.train --model_path {_word(base)}"
    start = f"--pretrain_mm_mlp_adapter_a {_word(folder / AUDIO_CONNECTOR_FILE)} --tune_mm_mlp_adapter_a True"
    tower = folder / AUDIO_TOWER_FILE
    if tower.is_file():
        joint = f"--audio_tower {_word(tower)} {start} --tune_audio_tower True --tune_adapter_llm True --va True"
        return f"an audio encoder and its projector for {base}", [
            f"{train} {joint} ...   # the joint stage",
            _ask(folder),
        ]
    second = f"{train} --audio_tower BEATS.pt {start} --tune_audio_tower True ...   # the second audio stage"
    return f"an audio projector for {base}", [second]


def _ask(folder: Path) -> str:
    return f'videollama2 ask VIDEO "What happens here?" --model-path {_word(folder)}'


def _merge(folder: Path) -> str:
    return f"videollama2 merge {_word(folder)} {_word(f'{folder}-merged')}   # one whole model"


def _word(text: str | Path) -> str:
    """Return a path or name as a word of a command line, in quotation marks where it has blanks."""
    return shlex.quote(str(text))
