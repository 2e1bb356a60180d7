"""Makes the parts of the tiny model with sound: a model that sees, an audio encoder and a projector.

    python -m videollama2.shapes.hearing_parts --out DIR

The command writes three parts; the same arguments give the same parts:

    DIR/sight               ``videollama2-tiny`` (or ``--model``), ready to learn the words of sound
    DIR/beats.pt            a small BEATs, pretrained on soundtracks (pretrain_hearing.py), in Microsoft's form
    DIR/mm_projector_a.bin  its projector, pretrained with it

The decoder of a model that only ever answered questions about what is seen has pushed the embeddings of all other words
into one direction, away from its answers. Tokens of sound could not point to one of them and not to the others.
Therefore the embeddings of words that the world without sound does not use are drawn anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from videollama2.checkpoints.files import AUDIO_CONNECTOR_FILE
from videollama2.checkpoints.full import load_checkpoint
from videollama2.commands import CommandParser, run_parsed
from videollama2.constants import TINY_MODEL_NAME
from videollama2.model.connectors.audio import build_audio_projector
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.weight_names import AUDIO_CONNECTOR_PREFIX
from videollama2.shapes.captions import PROMPTS, caption
from videollama2.shapes.parts import EMBEDDING_STD, world_texts
from videollama2.shapes.pretrain_connector import word_vectors
from videollama2.shapes.pretrain_encoder import SCENE_SEED
from videollama2.shapes.pretrain_hearing import PROJECTOR, SOUND_FORMS, STEPS, audio_config, pretrain_hearing
from videollama2.shapes.scene import make_scene

BEATS_FILE = "beats.pt"
SIGHT = "sight"

_CAPTIONED_SCENES = 300


def token_ids_in_use(tokenizer: Any) -> set[int]:
    """Return the ids of all tokens in texts and captions of the world without sound, and of special tokens."""
    captions = [caption(make_scene(SCENE_SEED, index)) for index in range(_CAPTIONED_SCENES)]
    texts = [*world_texts(), *captions, *PROMPTS.values()]
    return {*tokenizer.all_special_ids, *(id for ids in tokenizer(texts).input_ids for id in ids)}


@torch.no_grad()
def draw_unused(embeddings_VD: torch.Tensor, used: set[int], seed: int) -> None:
    """Draw the embeddings of all tokens but ``used`` anew, in place, as those of a new model (``parts.widen``)."""
    generator = torch.Generator().manual_seed(seed)
    drawn_VD = torch.randn(embeddings_VD.shape, generator=generator) * EMBEDDING_STD
    unused = [row for row in range(len(embeddings_VD)) if row not in used]
    embeddings_VD[unused] = drawn_VD[unused].to(embeddings_VD)


def write_hearing_parts(
    out: str | Path, model: str = TINY_MODEL_NAME, seed: int = 0, steps: int = STEPS, progress: bool = True
) -> dict[str, float]:
    """Write ``out/sight``, ``out/beats.pt`` and ``out/mm_projector_a.bin``.

    Args:
        model: folder or name of a model of the built-in world that sees.
        steps: number of steps of :mod:`.pretrain_hearing`.

    Returns:
        The final measurements of pretraining.
    """
    from transformers import set_seed

    out = Path(out)
    seeing, processor = load_checkpoint(model, dtype=torch.float32)
    embeddings_VD = seeing.get_input_embeddings().weight
    draw_unused(embeddings_VD, token_ids_in_use(processor.tokenizer), seed)
    words_WD = word_vectors(processor.tokenizer, embeddings_VD, SOUND_FORMS)
    set_seed(seed)
    tower = BeatsModel(audio_config())
    projector = build_audio_projector(PROJECTOR, tower.config.encoder_embed_dim, embeddings_VD.shape[1])
    reached = pretrain_hearing(tower, projector, words_WD, steps, progress)
    for part in (seeing, processor):
        part.save_pretrained(out / SIGHT)
    torch.save({"cfg": tower.config.to_diff_dict(), "model": tower.state_dict()}, out / BEATS_FILE)
    # This file is the last one written: the parts are whole when it is there.
    weights = {f"{AUDIO_CONNECTOR_PREFIX}{name}": tensor for name, tensor in projector.state_dict().items()}
    torch.save(weights, out / AUDIO_CONNECTOR_FILE)
    return reached


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m videollama2.shapes.hearing_parts",
        description="Write the parts that the tiny model with sound starts from.",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the parts")
    parser.add_argument("--model", default=TINY_MODEL_NAME, help="the model that sees (default %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="of the random weights")
    parser.add_argument("--steps", default=STEPS, type=int, help="of the pretraining (default %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code, which is 2 after a one-line error message, else 0."""
    return run_parsed(_parser(), argv, _run)


def _run(out: Path, model: str, seed: int, steps: int) -> None:
    reached = write_hearing_parts(out, model, seed, steps)
    print("hearing:", *(f"{name} {value:.3f}" for name, value in reached.items()))
    print(f"wrote {out}: {SIGHT}, {BEATS_FILE}, {AUDIO_CONNECTOR_FILE}")


if __name__ == "__main__":
    sys.exit(main())
