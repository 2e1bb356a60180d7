"""The parts the tiny model starts from: a language model and a vision encoder with random weights.

    python -m videollama2.shapes.parts --out DIR

writes ``DIR/llm`` (Qwen2 + tokenizer) and ``DIR/clip`` (CLIP encoder + preprocessing), a function of the
seed. Real models start from pretrained parts; for the built-in world there are none, so these stand in
their place, and ``train.py`` needs no special case. :class:`TinySizes` alone describes the model.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from videollama2.checkpoints.files import CONNECTOR_FILE
from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.constants import NUM_FRAMES
from videollama2.errors import ConfigError
from videollama2.media.pixels import PixelTransform
from videollama2.model.connectors import build_connector
from videollama2.model.weight_names import CONNECTOR_PREFIX
from videollama2.shapes import pretrain_connector, pretrain_encoder
from videollama2.shapes.sets import MCQ_PROMPT, make_scene, questions

SELECT_LAYER = -2
"""Hidden state of the encoder that the connector reads, as in all published models."""
CONNECTOR = "stc_connector_v35"

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML as Qwen2 writes it, without the system text that Qwen2 adds: the world needs none.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

EMBEDDING_STD = 0.05
"""Standard deviation of the untrained word embeddings."""

_TOKENIZER_SCENES = 300
_TOKENIZER_SEED = 7
_WORLD_WEIGHT, _COMMON_WEIGHT = 3, 8
"""Times that text is read. The world's own words come often, so their merges come before other English."""

# Frequent English words: text of other people is then not read byte by byte.
_COMMON_WORDS = """
the be to of and a in that have it for not on with he as you do at this but his by from they we say her she
or an will my one all would there their what so up out if about who get which go me when make can like time
no just him know take people into year your good some could them see other than then now look only come its
over think also back after use two how our work first well way even new want because any these give day most
us is are was were been has had did does said made went here where why again still never always often very
much many more less few little big small large long short high low old young right left next last same
different great own man woman child boy girl dog cat car house door room table water food hand head eye face
body light night morning world life part place case point week company system program question number home
fact group problem side area money story month lot study book word business issue kind play run move show
turn start stop walk talk stand sit hold open close call ask tell need feel become leave put mean keep let
begin seem help happen write provide read pay meet include continue set learn change lead understand watch
follow create speak add grow win offer remember love consider appear buy wait serve send build stay fall cut
reach red green blue yellow purple white black brown grey orange pink circle square triangle cross line
shape object picture video image frame scene clip colour color top bottom middle centre down above below
behind front near far between before during while until since early late soon fast slow slowly quickly yes
none zero three four five six seven eight nine ten hundred thousand please describe explain answer what's
it's don't hello thank thanks sorry name
"""


@dataclass(frozen=True)
class TinySizes:
    """Sizes of the tiny model.

    Raises:
        ConfigError: sizes that do not divide as they must.
    """

    vocab_size: int = 1024
    image_size: int = 48
    patch_size: int = 12
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 384
    max_positions: int = 1024

    def __post_init__(self) -> None:
        for whole, part in (
            ("image_size", "patch_size"),
            ("vision_width", "vision_heads"),
            ("width", "heads"),
            ("heads", "key_value_heads"),
        ):
            if getattr(self, part) < 1 or getattr(self, whole) % getattr(self, part):
                raise ConfigError(f"{whole} {getattr(self, whole)} is no multiple of {part} {getattr(self, part)}")

    def text_config(self) -> dict[str, Any]:
        """Fields of the decoder, a Qwen2."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "max_position_embeddings": self.max_positions,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }

    def vision_config(self) -> dict[str, Any]:
        """Fields of the encoder, a CLIP vision model."""
        return {
            "hidden_size": self.vision_width,
            "intermediate_size": 4 * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }

    def preprocessor(self) -> dict[str, Any]:
        """Fields of ``preprocessor_config.json``: CLIP's own steps at this size."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": self.image_size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": self.image_size, "width": self.image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "do_convert_rgb": True,
        }


def world_texts() -> Iterator[str]:
    """Questions, answers and multiple-choice prompts of some scenes: what the tokenizer learns to shorten."""
    for index in range(_TOKENIZER_SCENES):
        rng = random.Random(f"tokenizer:{index}")
        for question in questions(make_scene(_TOKENIZER_SEED, index), rng):
            letters = [f"({chr(ord('A') + n)}) {option}" for n, option in enumerate(question.candidates)]
            yield question.question
            yield question.answer
            yield MCQ_PROMPT.format(question=question.question, options="\n".join(letters))
            yield letters[0]
            yield "user\nassistant\nsystem\n"


def build_tokenizer(vocab_size: int) -> Any:
    """Byte-level BPE over the world's texts and common English words, as a Qwen2 tokenizer with ChatML.

    Any text can be written, if need be byte by byte; the same arguments give the same tokenizer. It is of
    Qwen2's own class because transformers opens the tokenizer of a Qwen2 folder as that class, whatever was
    saved there, and another way of cutting text into words would then give other ids than in training.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    like = Qwen2Tokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    common = " " + " ".join(_COMMON_WORDS.split())
    learner.train_from_iterator([*list(world_texts()) * _WORLD_WEIGHT, *[common] * _COMMON_WEIGHT], trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@torch.no_grad()
def widen(decoder: torch.nn.Module) -> None:
    """Bring the freshly drawn weights of a narrow decoder to a fitting scale.

    The usual standard deviation of 0.02 is one for widths of thousands. At width 128 it lets next to nothing through:
    attention stays uniform and MLPs near zero for thousands of steps. Here a matrix keeps the length of what it
    multiplies (1 / sqrt(columns)); those that write to the residual stream, half of it.
    """
    drawn = decoder.config.initializer_range
    for name, weight in decoder.named_parameters():
        if "embed_tokens" in name:
            weight *= EMBEDDING_STD / drawn
        elif weight.ndim == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            weight *= weight.shape[1] ** -0.5 * (0.5 if writes else 1.0) / drawn


def write_parts(
    out: str | Path,
    sizes: TinySizes | None = None,
    seed: int = 0,
    encoder_steps: int = pretrain_encoder.STEPS,
    connector_steps: int = pretrain_connector.STEPS,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Write ``out/llm``, ``out/clip`` and ``out/mm_projector.bin``.

    Args:
        encoder_steps: steps of :mod:`.pretrain_encoder`; 0 leaves the encoder random.
        connector_steps: steps of :mod:`.pretrain_connector`; 0 writes no connector.

    Returns:
        what pretraining reached, per part; empty without it.
    """
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        GenerationConfig,
        Qwen2Config,
        Qwen2ForCausalLM,
        set_seed,
    )

    sizes = sizes or TinySizes()
    out = Path(out)
    tokenizer = build_tokenizer(sizes.vocab_size)
    set_seed(seed)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    decoder = Qwen2ForCausalLM(Qwen2Config(**sizes.text_config(), **ids))
    widen(decoder)
    decoder.generation_config = GenerationConfig(**ids)
    encoder = CLIPVisionModel(CLIPVisionConfig(**sizes.vision_config()))
    transform = PixelTransform.from_preprocessor_config(sizes.preprocessor())
    reached = {}
    if encoder_steps:
        reached["encoder"] = pretrain_encoder.pretrain_encoder(
            encoder, transform, SELECT_LAYER, encoder_steps, progress
        )
    set_seed(seed)
    connector = build_connector(CONNECTOR, sizes.vision_width, sizes.width)
    if connector_steps:
        words = pretrain_connector.word_vectors(tokenizer, decoder.get_input_embeddings().weight)
        reached["connector"] = pretrain_connector.pretrain_connector(
            encoder.eval(), connector, words, transform, SELECT_LAYER, NUM_FRAMES, connector_steps, progress
        )
    decoder.save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")
    encoder.save_pretrained(out / "clip")
    text = json.dumps(sizes.preprocessor(), indent=2)
    (out / "clip" / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
    if connector_steps:
        weights = {f"{CONNECTOR_PREFIX}{name}": tensor for name, tensor in connector.state_dict().items()}
        torch.save(weights, out / CONNECTOR_FILE)
    return reached


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m videollama2.shapes.parts",
        description="Write the language model (untrained) and vision encoder (pretrained) the tiny model starts from.",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder that gets llm/ and clip/")
    parser.add_argument("--seed", default=0, type=int, help="of the random weights")
    for part, module in (("encoder", pretrain_encoder), ("connector", pretrain_connector)):
        parser.add_argument(
            f"--{part}-steps", default=module.STEPS, type=int, help="of its pretraining (default %(default)s)"
        )
    for size in fields(TinySizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", default=size.default, type=int)
    add_debug_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0, or 2 after one line that says what is wrong)."""
    options = vars(_parser().parse_args(argv))
    debug = options.pop("debug")
    return run_command(lambda: _run(**options), debug=debug)


def _run(out: Path, seed: int, encoder_steps: int, connector_steps: int, **sizes: int) -> None:
    reached = write_parts(out, TinySizes(**sizes), seed, encoder_steps, connector_steps)
    for part, values in reached.items():
        print(f"{part}:", *(f"{name} {value:.3f}" for name, value in values.items()))
    print(f"wrote {out}: llm, clip, {CONNECTOR_FILE}")


if __name__ == "__main__":
    sys.exit(main())
