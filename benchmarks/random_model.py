#!/usr/bin/env python3
"""What the benchmarks ask about, and models of real shapes with random weights that they ask.

    python benchmarks/random_model.py FOLDER [--shape 7b] [--hears]

writes such a model, so that several benchmarks can open it with ``--model``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videollama2.config import VideoLlama2Config
    from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
SOUNDING_CLIP = CLIP.with_name("sounding_shapes.mp4")
QUESTION = "Which object moves first, the white cross or the red circle?"

_QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {
        **_QWEN2,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": {
        **_QWEN2,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""Qwen2 decoders."""
MISTRAL_7B: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}

TOWER = "openai/clip-vit-large-patch14-336"


def typical_config(decoder: dict[str, Any], **options: Any) -> VideoLlama2Config:
    """Return the configuration of a model with such a decoder: CLIP ViT-L/14-336, the STC connector and 8 frames.

    Args:
        options: fields of the configuration that differ.
    """
    from videollama2.config import VideoLlama2Config

    common = {"mm_vision_tower": TOWER, "mm_projector_type": "stc_connector", "num_frames": 8}
    return VideoLlama2Config(text_config=decoder, **{**common, **options})


def new_model(config: VideoLlama2Config, device: Any, dtype: Any) -> VideoLlama2ForConditionalGeneration:
    """Return a model with random weights, which are drawn on their device and in their type."""
    import torch

    from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

    standard = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return VideoLlama2ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(standard)


def make_random(
    folder: Path, shape: str = "0.5b", seed: int = 0, hears: bool = False, layers: int | None = None
) -> None:
    """Write a checkpoint of these shapes with random weights; the tokenizer is the tiny model's.

    The weights are stored in bfloat16, as published ones are. With ``hears``, there is a BEATs of the published shape.
    With ``layers``, decoder and vision encoder have so many each. The numbers are drawn on the GPU, if there is one: a
    processor takes minutes for those of a 7B model.
    """
    import torch

    from videollama2.checkpoints import load_checkpoint
    from videollama2.model.encoders import known_vision_config
    from videollama2.processing import VideoLlama2Processor, load_image_processor

    fewer = {} if layers is None else {"num_hidden_layers": layers}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = typical_config(
        {**SHAPES[shape], **fewer},
        vision_config={**(known_vision_config(TOWER) or {}), **fewer},
        mm_audio_tower="beats.pt" if hears else None,
    )
    model = new_model(config, "cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
    _, tiny = load_checkpoint("videollama2-tiny")
    with torch.no_grad():
        # Ids that the tokenizer does not know would be answers without a letter, and nothing to time.
        for weight in {model.get_input_embeddings().weight, model.lm_head.weight}:
            weight[len(tiny.tokenizer) :] = 0
    processor = VideoLlama2Processor(load_image_processor(folder, config), tiny.tokenizer, config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--hears", action="store_true", help="with an audio encoder")
    args = parser.parse_args()
    make_random(args.folder, args.shape, hears=args.hears)


if __name__ == "__main__":
    main()
