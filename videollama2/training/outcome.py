"""The last lines that a run prints: where its result is, and commands to use it."""

from __future__ import annotations

from pathlib import Path

from videollama2.checkpoints.files import ADAPTER_CONFIG
from videollama2.checkpoints.write import CONNECTOR_FILE


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
            f"python -m videollama2.train --model_path {base} --pretrain_mm_mlp_adapter {folder / CONNECTOR_FILE} ..."
            "   # the second stage"
        ]
    else:
        what, commands = "a whole model", [_ask(folder), f"videollama2 eval run moving_shapes --model-path {folder}"]
    lines = [f"{folder} holds the result, {what}. Next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def _ask(folder: Path) -> str:
    return f'videollama2 ask VIDEO "What happens here?" --model-path {folder}'


def _merge(folder: Path) -> str:
    return f"videollama2 merge {folder} {folder}-merged   # one whole model"
