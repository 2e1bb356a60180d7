"""Chooses which layers recompute their activations in the backward pass instead of keeping them."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags.run import TrainingArguments


class RecomputeChoice(TrainerCallback):
    """A callback that limits gradient checkpointing to ``--gradient_checkpointing_parts`` and every n-th layer.

    transformers switches it on for every layer when the training begins, right before callbacks are told.
    """

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        self.model = model

    def on_train_begin(self, args: Any, *others: Any, **kwargs: Any) -> None:
        if args.gradient_checkpointing:
            choose_recomputed(self.model, args)


def choose_recomputed(model: VideoLlama2ForConditionalGeneration, args: TrainingArguments) -> None:
    """Switch gradient checkpointing off for parts that were not asked for, and for layers between every n-th one.

    Layers are counted from 0 within each part; a connector's stages have no layers and are recomputed as a whole.
    """
    for name, part in model.model.named_children():
        layers = [module for module in part.modules() if isinstance(module, GradientCheckpointingLayer)]
        if name not in args.gradient_checkpointing_parts:
            kept = [module for module in part.modules() if hasattr(module, "gradient_checkpointing")]
        else:
            kept = [layer for number, layer in enumerate(layers) if number % args.gradient_checkpointing_every]
        for module in kept:
            module.gradient_checkpointing = False  # pyright: ignore[reportArgumentType] - layers have this switch
