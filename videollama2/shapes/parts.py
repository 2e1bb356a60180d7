"""Makes the parts that training of the tiny model starts from: language model, vision encoder and connector.

    python -m videollama2.shapes.parts --out DIR

The command writes three parts; the same arguments give the same parts:

    DIR/llm               a Qwen2 with random weights, and its tokenizer
    DIR/clip              a CLIP vision encoder, pretrained on still scenes (pretrain_encoder.py), and its preprocessing
    DIR/mm_projector.bin  a connector, pretrained on clips (pretrain_connector.py)

Real models start from published parts. The built-in world has none, so this module makes them, and ``train.py`` needs
no special case. :class:`TinySizes` holds all sizes of the model.
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
from transformers import PreTrainedModel

from videollama2.checkpoints.files import CONNECTOR_FILE
from videollama2.commands import CommandParser, run_parsed
from videollama2.constants import NUM_FRAMES
from videollama2.errors import ConfigError
from videollama2.media.pixels import PixelTransform
from videollama2.model.connectors import build_connector
from videollama2.model.weight_names import CONNECTOR_PREFIX
from videollama2.shapes import pretrain_connector, pretrain_encoder
from videollama2.shapes.annotations import MCQ_PROMPT
from videollama2.shapes.questions import questions
from videollama2.shapes.scene import make_scene

SELECT_LAYER = -2
"""Hidden state of the encoder that the connector reads, as in all published models."""
CONNECTOR = "stc_connector_v35"

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML as Qwen2 writes it, except for Qwen2's default system message, which the built-in world does not need.
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
"""How often the tokenizer's trainer reads the world's texts and the list of common words.

The world's texts contain the same few words many times, so the trainer learns their merges before those of other words.
"""

# Frequent English words. With them in the vocabulary, other English text is not split into single bytes.
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
        ConfigError: the image size is not a multiple of the patch size, a width is not one of its heads, or the
            number of heads no multiple of the number of key-value heads.
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
                raise ConfigError(f"{whole} {getattr(self, whole)} is not a multiple of {part} {getattr(self, part)}")

    def text_config(self) -> dict[str, Any]:
        """Return the fields of the decoder's Qwen2Config."""
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
        """Return the fields of the encoder's CLIPVisionConfig."""
        return {
            "hidden_size": self.vision_width,
            "intermediate_size": 4 * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }

    def preprocessor(self) -> dict[str, Any]:
        """Return the fields of ``preprocessor_config.json``: CLIP's preprocessing at this image size."""
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
    """Yield the texts that the tokenizer is trained on: questions, answers and multiple-choice prompts of scenes."""
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
    """Train a byte-level BPE tokenizer on the world's texts and common English words.

    It is a Qwen2Tokenizer with the ChatML template. It can encode any text, if necessary byte by byte, and the same
    vocabulary size always gives the same tokenizer. The class matters: transformers opens the tokenizer in a Qwen2
    folder as a Qwen2Tokenizer, whichever class saved it, and a class that splits text into words in another way would
    then produce other ids than those of training.
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
        merges=[tuple(pair) for pair in model["merges"]],  # pyright: ignore[reportArgumentType] - its base takes pairs
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@torch.no_grad()
def widen(decoder: PreTrainedModel) -> None:
    """Rescale the newly initialised weights of a narrow decoder in place.

    The usual standard deviation of 0.02 suits widths of thousands. At width 128 it makes the outputs of all layers
    tiny: attention stays uniform and the MLPs stay near zero for thousands of steps. Here the standard deviation of a
    matrix is 1 / sqrt(columns), so that its output is about as long as its input, or half of that for the matrices that
    write to the residual stream (``o_proj``, ``down_proj``). Word embeddings get :data:`EMBEDDING_STD`.
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
        encoder_steps: number of steps of :mod:`.pretrain_encoder`; 0 leaves the encoder's weights random.
        connector_steps: number of steps of :mod:`.pretrain_connector`; 0 writes no connector.

    Returns:
        The final measurements of pretraining, by part (``encoder``, ``connector``); a part with 0 steps is missing.
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
        words = pretrain_connector.word_vectors(tokenizer, decoder.model.embed_tokens.weight)
        reached["connector"] = pretrain_connector.pretrain_connector(
            encoder.eval(), connector, words, transform, SELECT_LAYER, NUM_FRAMES, connector_steps, progress
        )
    for part, name in ((decoder, "llm"), (tokenizer, "llm"), (encoder, "clip")):
        part.save_pretrained(out / name)
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
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code, which is 2 after a one-line error message, else 0."""
    return run_parsed(_parser(), argv, _run)


def _run(out: Path, seed: int, encoder_steps: int, connector_steps: int, **sizes: int) -> None:
    reached = write_parts(out, TinySizes(**sizes), seed, encoder_steps, connector_steps)
    for part, values in reached.items():
        print(f"{part}:", *(f"{name} {value:.3f}" for name, value in values.items()))
    print(f"wrote {out}: llm, clip, {CONNECTOR_FILE}")


if __name__ == "__main__":
    sys.exit(main())
