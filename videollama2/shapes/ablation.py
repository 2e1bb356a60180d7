"""Compares connectors as the paper reports it, on the built-in world (paper, table 1).

    python -m videollama2.shapes.ablation --out DIR

Every connector is trained from the same start on the same questions: the encoder is pretrained once and not changed, so
that its features are computed once. Connector and decoder begin with random weights, and a seed draws the same decoder
and the same order of the questions for all connectors. An answer is right if it is the most likely of the question's
options.

Scenes have one object, and the questions are those that such scenes answer: three types can be answered from one frame,
four need several. Each finished run is kept in ``DIR/runs``, so that the same command continues an interrupted one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import (
    CLIPVisionModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from videollama2.commands import CommandParser, run_parsed
from videollama2.constants import NUM_FRAMES
from videollama2.errors import ConfigError, DataError
from videollama2.media.frames import uniform_indices
from videollama2.media.kinds import VIDEO
from videollama2.media.pixels import PixelTransform
from videollama2.model.connectors import build_connector
from videollama2.model.encoders import encode_frames
from videollama2.shapes.ablation_report import AblationRun, write_results
from videollama2.shapes.parts import SELECT_LAYER, TinySizes, build_tokenizer, widen, write_parts
from videollama2.shapes.questions import Question, questions
from videollama2.shapes.scene import FRAMES, make_scene, render_scene

CONNECTORS = (
    "linear",
    "mlp2x_gelu",
    "spatial_pool",
    "spatial_conv",
    "stp_connector",
    "stc_connector",
    "stc_connector_v35",
)
STATIC, TEMPORAL = ("shape", "colour", "position"), ("direction", "change", "speed", "appearance")
"""Types of questions about a single object; the other types of the world need a second one."""

_TRAINING_SEED, _TEST_SEED = 1_000_005, 1_000_006
"""Seeds of the scenes; no data set uses them."""
_WIDTH, _LAYERS = 64, 2
_IGNORED = -100


@dataclass(frozen=True)
class AblationSizes:
    """The amount that is drawn and trained.

    Raises:
        ConfigError: a number is below 1.
    """

    encoder_steps: int = 400
    clips: int = 3000
    test_clips: int = 1000
    steps: int = 1500
    batch: int = 16
    learning_rate: float = 2e-3
    seeds: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ConfigError(f"{name} {value} must be positive")


@dataclass(frozen=True)
class EncodedClips:
    """The features of S clips, of shape (S, T, N, D), and questions with the number of the clip, by type."""

    features: torch.Tensor
    asked: dict[str, list[tuple[int, Question]]]


def encode_clips(encoder: PreTrainedModel, transform: PixelTransform, seed: int, count: int) -> EncodedClips:
    """Draw ``count`` clips of one object each, encode their frames and ask about them."""
    features, asked = [], {kind: [] for kind in (*STATIC, *TEMPORAL)}
    for index in range(count):
        scene = make_scene(seed, index, VIDEO, objects=1)
        pixels_TCHW = transform(render_scene(scene, uniform_indices(FRAMES, NUM_FRAMES)), None)
        with torch.no_grad():
            features.append(encode_frames(encoder, pixels_TCHW, SELECT_LAYER))
        for question in questions(scene, random.Random(f"{seed}:{index}")):
            if question.type in asked:
                asked[question.type].append((index, question))
    return EncodedClips(torch.stack(features), asked)


class AblationModel(nn.Module):
    """A connector and a small decoder, which reads the visual tokens, then a question, then its answer."""

    def __init__(self, connector: str, encoder_width: int, tokenizer: Any) -> None:
        super().__init__()
        sizes = TinySizes(width=_WIDTH, layers=_LAYERS, intermediate=3 * _WIDTH)
        self.decoder = Qwen2ForCausalLM(Qwen2Config(**sizes.text_config(), pad_token_id=tokenizer.pad_token_id))
        widen(self.decoder)
        # The connector is drawn last, so that a seed gives all connectors the same decoder.
        self.connector = build_connector(connector, encoder_width, _WIDTH)
        self.tokenizer = tokenizer

    def forward(self, features_BTND: torch.Tensor, asked: Sequence[str], said: Sequence[str]) -> torch.Tensor:
        """Return the negative log-likelihood (B,) of each answer, and leave the questions out of it."""
        ids_BL, labels_BL = self._encode(asked, said)
        tokens_BND = self.connector(features_BTND)
        embeds_BLD = torch.cat([tokens_BND, self.decoder.model.embed_tokens(ids_BL)], dim=1)
        hidden_BLD = self.decoder.model(inputs_embeds=embeds_BLD).last_hidden_state
        before_BLD = hidden_BLD[:, tokens_BND.shape[1] - 1 : -1]  # the states that predict the text
        told = labels_BL != _IGNORED
        loss_BL = torch.zeros(labels_BL.shape)
        loss_BL[told] = F.cross_entropy(self.decoder.lm_head(before_BLD[told]), labels_BL[told], reduction="none")
        return loss_BL.sum(1)

    def _encode(self, asked: Sequence[str], said: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        for question, answer in zip(asked, said, strict=True):
            prompt = self.tokenizer(f"{question}\n").input_ids
            reply = [*self.tokenizer(answer).input_ids, self.tokenizer.eos_token_id]
            rows.append((prompt + reply, [_IGNORED] * len(prompt) + reply))
        length = max(len(ids) for ids, _ in rows)
        padding = self.tokenizer.pad_token_id
        ids_BL = torch.tensor([ids + [padding] * (length - len(ids)) for ids, _ in rows])
        labels_BL = torch.tensor([labels + [_IGNORED] * (length - len(labels)) for _, labels in rows])
        return ids_BL, labels_BL


def train_model(reader: AblationModel, clips: EncodedClips, plan: AblationSizes, seed: int) -> float:
    """Train a reader in place, with as many questions of each type, and return the mean loss of the last 20 steps."""
    optimizer = torch.optim.AdamW(reader.parameters(), lr=plan.learning_rate, weight_decay=0.05, betas=(0.9, 0.99))
    schedule = get_cosine_schedule_with_warmup(optimizer, min(50, plan.steps // 5), plan.steps)
    order, kinds, losses = random.Random(f"order:{seed}"), list(clips.asked), []
    for _ in range(plan.steps):
        rows = [order.choice(clips.asked[order.choice(kinds)]) for _ in range(plan.batch)]
        features = clips.features[[index for index, _ in rows]]
        loss = reader(features, [row.question for _, row in rows], [row.answer for _, row in rows]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / len(losses[-20:])


@torch.no_grad()
def accuracy(reader: AblationModel, clips: EncodedClips, batch: int = 64) -> dict[str, float]:
    """Return the share of questions of each type for which the right option is the most likely one."""
    reader.eval()
    result = {}
    for kind, rows in clips.asked.items():
        right = 0
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            options = [(index, row.question, option) for index, row in part for option in row.candidates]
            losses = iter(_losses(reader, clips, options))
            for _, row in part:
                given = [next(losses) for _ in row.candidates]
                right += row.candidates[given.index(min(given))] == row.answer
        result[kind] = right / len(rows)
    return result


def _losses(reader: AblationModel, clips: EncodedClips, options: Sequence[tuple[int, str, str]]) -> list[float]:
    indices, asked, said = zip(*options, strict=True)
    return reader(clips.features[list(indices)], asked, said).tolist()


def chance(clips: EncodedClips) -> dict[str, float]:
    """Return the share of right answers of a blind guess, by type."""
    return {kind: sum(1 / len(row.candidates) for _, row in rows) / len(rows) for kind, rows in clips.asked.items()}


def runs(out: Path, plan: AblationSizes, connectors: Sequence[str]) -> Iterator[AblationRun]:
    """Train and test every connector with every seed, and yield each run; those in ``out/runs`` are not repeated.

    Raises:
        DataError: a file in ``out/runs`` is of another plan, or is not a run.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    drawn: tuple[EncodedClips, EncodedClips] | None = None
    tokenizer = build_tokenizer(TinySizes().vocab_size)
    for seed in range(plan.seeds):
        for name in connectors:
            path = out / "runs" / f"{name}-{seed}.json"
            if path.is_file():
                yield _former(path, plan)
                continue
            drawn = drawn or _draw(out, plan)
            training, test = drawn
            set_seed(seed)
            reader = AblationModel(name, training.features.shape[-1], tokenizer)
            size = sum(weight.numel() for weight in reader.connector.parameters())
            tokens = type(reader.connector).num_tokens(NUM_FRAMES, math.isqrt(training.features.shape[2]))
            loss = train_model(reader, training, plan, seed)
            run = AblationRun(name, seed, tokens, size, loss, accuracy(reader, test), chance(test))
            path.write_text(json.dumps({"plan": _identity(plan), **asdict(run)}, indent=1) + "\n", encoding="utf-8")
            yield run


def _identity(plan: AblationSizes) -> dict[str, Any]:
    """Return what all runs in a folder share; more seeds may be added to the same folder."""
    return {name: value for name, value in asdict(plan).items() if name != "seeds"}


def _former(path: Path, plan: AblationSizes) -> AblationRun:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        made = raw.pop("plan")
        run = AblationRun(**raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not a run of this comparison ({error}); remove it") from error
    if made != _identity(plan):
        raise DataError(f"{path}: was made with {made}, not {_identity(plan)}; take another folder")
    return run


def _draw(out: Path, plan: AblationSizes) -> tuple[EncodedClips, EncodedClips]:
    """Return the clips for training and for the test, as the pretrained encoder sees them."""
    if not (out / "start" / "clip" / "preprocessor_config.json").is_file():
        write_parts(out / "start", encoder_steps=plan.encoder_steps, connector_steps=0)
    encoder = CLIPVisionModel.from_pretrained(out / "start" / "clip").eval()
    transform = PixelTransform.from_preprocessor_config(TinySizes().preprocessor())
    return (
        encode_clips(encoder, transform, _TRAINING_SEED, plan.clips),
        encode_clips(encoder, transform, _TEST_SEED, plan.test_clips),
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m videollama2.shapes.ablation",
        description="Train small models that differ in their connectors, and compare them.",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and the report")
    parser.add_argument("--connectors", nargs="+", default=CONNECTORS, choices=CONNECTORS, metavar="NAME")
    for name, default in asdict(AblationSizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, metavar="N")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code, which is 2 after a one-line error message, else 0."""
    return run_parsed(_parser(), argv, _run)


def _run(out: Path, connectors: Sequence[str], **plan: Any) -> None:
    finished = []
    for run in runs(out, AblationSizes(**plan), connectors):
        finished.append(run)
        print(run.line(), flush=True)
        write_results(out, finished, STATIC, TEMPORAL)
    print(f"wrote {out}: results.md, results.json, results.svg")


if __name__ == "__main__":
    sys.exit(main())
