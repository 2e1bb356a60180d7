"""Writes model cards, which say what a folder of weights is, from what it was made, and how well it does.

A card is written from the files that a run of ``train.py`` leaves in its folder. Numbers that were not measured are
left out rather than guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama2.checkpoints.files import ADAPTER_CONFIG, PART_FILES, RUN_FILE
from videollama2.errors import CheckpointNotFoundError
from videollama2.hub import find_file, read_json, resolve_name

CARD_FILE = "README.md"
LOSS_PLOT = "loss.png"

_RECIPE = (
    *("objective", "reward", "streaming", "packing"),
    *("max_steps", "num_train_epochs", "learning_rate", "mm_projector_lr", "lr_scheduler_type", "warmup_ratio"),
    *("weight_decay", "optim", "bf16", "model_max_length", "num_frames", "mm_projector_type", "freeze_vision_tower"),
    *("tune_mm_mlp_adapter", "lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_dora", "lora_rslora"),
    *("bits", "seed"),
)
"""Flags that a reader compares first; all of them are in the record of the run."""


@dataclass(frozen=True)
class Provenance:
    """The origin of a folder: what it was made from.

    Attributes:
        base: folder or hub name of the model that was trained, merged or exported.
        run: folder of the run that trained it, or None.
        made_by: the command, as a sentence.
    """

    base: str
    run: Path | None
    made_by: str


def write_card(folder: str | Path, provenance: Provenance) -> Path:
    """Write the card of ``folder``, which holds its weights already; return the card's path.

    An existing card that this package has not written is kept.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not path.exists() or _MARK in path.read_text(encoding="utf-8"):
        path.write_text("\n".join(_lines(folder, provenance)) + "\n", encoding="utf-8")
    return path


_MARK = "<!-- written by videollama2; remove this line to keep your own text -->"


def _lines(folder: Path, provenance: Provenance) -> Iterator[str]:
    licence = _licence_of(provenance.base)
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: video-text-to-text"
    yield f"base_model: {provenance.base}"
    if licence:
        yield f"license: {licence}"
    yield "tags: [videollama2]"
    yield "---"
    yield _MARK
    yield f"# {folder.resolve().name}"
    yield ""
    yield f"{_kind(folder)} for `{provenance.base}`. {provenance.made_by}"
    if not licence:
        yield "The terms of the base model apply; its folder names no licence."
    yield ""
    yield "```bash"
    yield f'videollama2 ask clip.mp4 "What happens?" --model-path {folder}'
    yield "```"
    if provenance.run is not None:
        yield from training_lines(folder, provenance.run)


def _kind(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return "A LoRA adapter"
    is_part = any((folder / name).is_file() for name in PART_FILES)
    return "A connector" if is_part else "Whole weights, made"


def training_lines(folder: Path, run: Path) -> Iterator[str]:
    """Yield data, recipe and result of a run in Markdown, as far as its folder ``run`` has them.

    Args:
        folder: folder that the text is for; its plot of losses is shown.
    """
    files = (run / RUN_FILE, run / "trainer_state.json")
    record, state = (read_json(file) if file.is_file() else {} for file in files)
    if identity := record.get("identity"):
        yield from _data(identity)
        yield from _recipe(identity)
    if state:
        yield from _result(state)
    if (folder / LOSS_PLOT).is_file():
        yield from ("", f"![Training loss]({LOSS_PLOT})")


def _data(record: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## Data", "", "| flag | file | SHA-256 |", "|---|---|---|")
    for flag, files in record.get("data", {}).items():
        for file, digest in files:
            yield f"| `--{flag}` | {Path(file).name} | `{digest[:16]}` |"


def _recipe(record: dict[str, Any]) -> Iterator[str]:
    flags = record.get("flags", {})
    yield from ("", "## Recipe", "", "| flag | value |", "|---|---|")
    for name, (weights, _) in record.get("weights", {}).items():
        yield f"| `--{name}` | {weights} |"
    yield f"| samples in a step | {record.get('batch')} |"
    without_effect = {"num_train_epochs" if (flags.get("max_steps") or 0) > 0 else "max_steps"}
    if not flags.get("lora_enable"):
        without_effect |= {name for name in _RECIPE if name.startswith("lora_")}
    for name in _RECIPE:
        if name not in without_effect and flags.get(name) not in (None, False, ""):
            yield f"| `--{name}` | {flags[name]} |"


def _result(state: dict[str, Any]) -> Iterator[str]:
    log = state.get("log_history", [])
    rows = [("steps", state.get("global_step"))]
    for name, title in (("loss", "last training loss"), ("eval_loss", "evaluation loss")):
        values = [row[name] for row in log if name in row]
        rows += [(title, f"{values[-1]:.4f}")] if values else []
    accuracies = [row["eval_answer_accuracy"] for row in log if "eval_answer_accuracy" in row]
    rows += [("answers right in evaluation", f"{accuracies[-1]:.1%}")] if accuracies else []
    yield from ("", "## Result", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows))


def _licence_of(base: str) -> str | None:
    """Return the licence that the card of ``base`` names in its first block, or None."""
    try:
        card = find_file(resolve_name(base), CARD_FILE)
    except CheckpointNotFoundError:  # a name on the hub, which cannot be reached now
        return None
    if card is None:
        return None
    _, _, rest = Path(card).read_text(encoding="utf-8", errors="replace").partition("---\n")
    head, closed, _ = rest.partition("\n---")
    lines = head.splitlines() if closed else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), None)
