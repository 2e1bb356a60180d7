"""The part of the trainer that creates the optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from videollama2.errors import ConfigError, MissingDependencyError, first_line
from videollama2.training.asking.trainer import AskingTrainer


class OptimizingTrainer(AskingTrainer):
    """A trainer whose parts may have learning rates of their own."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of matrices and convolutions; norms, biases and other vectors get no weight decay."""
        # Under ZeRO-3 a parameter is only a slice, with its true shape in the attribute ds_shape.
        return [name for name, p in model.named_parameters() if len(getattr(p, "ds_shape", p.shape)) > 1]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimizer, with parameter groups of their own for a connector or encoder with its own rate."""
        if self.optimizer is not None:
            return cast("torch.optim.Optimizer", self.optimizer)
        try:
            optimizer = super().create_optimizer(*args, **kwargs)
        except ImportError as error:
            raise MissingDependencyError(f"--optim {_text_of(self.args.optim)} needs a package: {error}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--optim {_text_of(self.args.optim)}: {first_line(error)}") from error
        inner = self.unwrapped().model
        for name, module, rate in (
            ("mm_projector_lr", inner.mm_projector, self.args.mm_projector_lr),
            ("mm_projector_lr", inner.mm_projector_a, self.args.mm_projector_lr),
            ("vision_tower_lr", inner.vision_tower, self.args.vision_tower_lr),
        ):
            if rate is not None and module is not None:
                optimizer.param_groups[:] = _split_groups(optimizer.param_groups, module, rate, name)
        return optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule.

        Raises:
            ConfigError: ``--lr_scheduler_kwargs`` lacks a value that the schedule needs, or has one that it does not
                know.
        """
        try:
            return super().create_scheduler(*args, **kwargs)
        except (ValueError, TypeError) as error:
            given = f"--lr_scheduler_kwargs {self.args.lr_scheduler_kwargs or {}}"
            kind = _text_of(self.args.lr_scheduler_type)
            raise ConfigError(f"--lr_scheduler_type {kind} with {given}: {first_line(error)}") from error


def _text_of(choice: Any) -> str:
    """Return a choice among named values as the command line has it."""
    return str(getattr(choice, "value", choice))


def _split_groups(groups: list[dict[str, Any]], module: nn.Module, rate: float, part: str) -> list[dict[str, Any]]:
    """Return optimizer groups in which the parameters of ``module`` have groups of their own with the rate ``rate``.

    The optimizer has no state yet, so splitting its groups is safe.
    """
    own = {id(parameter) for parameter in module.parameters()}
    split: list[dict[str, Any]] = []
    keep: Callable[[nn.Parameter], bool]
    for keep, options in ((lambda p: id(p) not in own, {}), (lambda p: id(p) in own, {"lr": rate, "part": part})):
        for group in groups:
            parameters = [p for p in group["params"] if keep(p)]
            if parameters:
                split.append({**group, **options, "params": parameters})
    return split
