"""transformers' ``Trainer`` where this model needs something else: groups, order, saving, resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.sampler import ModalityLengthSampler
from videollama2.loading import load_checkpoint, load_connector
from videollama2.training.arguments import TrainingArguments
from videollama2.training.saving import CONNECTOR_FILE, save_connector, save_model


class VideoLlama2Trainer(Trainer):
    """Trainer whose checkpoints carry published weight names and resume through them.

    Args:
        connector_base: first stage: the language model's name; only the connector is written. Else None.
        others: as :class:`transformers.Trainer`; ``processing_class`` is the model's processor.
    """

    args: TrainingArguments

    def __init__(self, *args: Any, connector_base: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connector_base = connector_base
        # transformers sets its flag on the outer configuration, but the decoder reads its own.
        self.model.config.text_config.use_cache = self.args.use_cache

    # ------------------------------------------------------------------------------------------- optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and convolutions decay; norms, biases and other vectors do not, whatever their names."""
        # ZeRO-3 keeps a slice of each parameter here and its true shape beside it.
        return [name for name, p in model.named_parameters() if len(getattr(p, "ds_shape", p.shape)) > 1]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Split transformers' groups so that connector and encoder may have their own learning rates."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(*args, **kwargs)
        inner = self.accelerator.unwrap_model(self.model).model
        for module, rate in (
            (inner.mm_projector, self.args.mm_projector_lr),
            (inner.vision_tower, self.args.vision_tower_lr),
        ):
            if rate is not None:
                optimizer.param_groups[:] = _split_groups(optimizer.param_groups, module, rate)
        return optimizer

    # ------------------------------------------------------------------------------------------------ order

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_modality_length or not isinstance(dataset, VideoInstructionDataset):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ModalityLengthSampler(
            lengths=dataset.lengths,
            visual=[length > 0 for length in dataset.visual_lengths],
            batch_size=self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size,
            seed=seed,
        )

    # --------------------------------------------------------------------------------- saving and resuming

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write a folder that opens again; transformers' pickle of the arguments is left out."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        if self.connector_base is not None:
            save_connector(model, self.processing_class, folder, self.connector_base)
        else:
            save_model(model, self.processing_class, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read weights through the published names.

        transformers compares the names on disk with those in memory, finds none of the renamed ones and goes
        on with a warning: a resumed run would start from the base model.
        """
        target = self.accelerator.unwrap_model(self.model if model is None else model)
        folder = Path(resume_from_checkpoint)
        if (folder / CONNECTOR_FILE).is_file():
            load_connector(target, folder / CONNECTOR_FILE)
            return
        saved, _ = load_checkpoint(folder, dtype="auto")
        target.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        """As :meth:`_load_from_checkpoint`, for ``load_best_model_at_end``."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _split_groups(groups: list[dict[str, Any]], module: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Optimizer groups in which the parameters of ``module`` stand apart with learning rate ``rate``.

    The optimizer has no state yet, so its groups may be cut.
    """
    own = {id(parameter) for parameter in module.parameters()}
    split: list[dict[str, Any]] = []
    keep: Callable[[nn.Parameter], bool]
    for keep, options in ((lambda p: id(p) not in own, {}), (lambda p: id(p) in own, {"lr": rate})):
        for group in groups:
            parameters = [p for p in group["params"] if keep(p)]
            if parameters:
                split.append({**group, **options, "params": parameters})
    return split
