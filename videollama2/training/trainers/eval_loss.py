"""Loss and share of right answers on the records of ``--eval_data_path``.

An answer is right if each of its tokens, the end token included, is the most likely one after the right tokens before
it. This is exactly the case when greedy generation would write the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from videollama2.constants import IGNORE_INDEX


@torch.no_grad()
def sums_over(model: nn.Module, batches: Iterable[dict[str, Any]], device: torch.device) -> torch.Tensor:
    """Return four sums over all ``batches``, a tensor (4,): the loss, labels, right answers, and answers.

    Args:
        model: the model, or the DeepSpeed engine around it; its training mode is restored afterwards.
        batches: batches of the collator, on the device.
        device: where the sums are kept.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for batch in batches:
        labels_BL = batch.pop("labels")
        targets_BL = labels_BL[:, 1:]
        # Only positions where some row has a label get logits: those of all positions would not fit into memory.
        kept_K = (targets_BL != IGNORE_INDEX).any(dim=0).nonzero().flatten()
        logits_BKV = model(**batch, logits_to_keep=kept_K).logits
        sums += _sums(logits_BKV, targets_BL.to(logits_BKV.device), kept_K).to(sums)
    model.train(was_training)
    return sums


def _sums(logits_BKV: torch.Tensor, targets_BL: torch.Tensor, kept_K: torch.Tensor) -> torch.Tensor:
    targets_BK = targets_BL[:, kept_K]
    labelled_BK = targets_BK != IGNORE_INDEX
    loss = F.cross_entropy(logits_BKV[labelled_BK].float(), targets_BK[labelled_BK], reduction="sum")
    # The K kept positions leave out the tokens between answers, so in them neighbouring answers would look like one.
    # Mistakes are therefore put back into all L positions, where each run of labels is one answer.
    wrong_BL = torch.zeros_like(targets_BL, dtype=torch.bool)
    wrong_BL[:, kept_K] = labelled_BK & (logits_BKV.argmax(dim=-1) != targets_BK)
    answers = right = 0
    for labelled, wrong in zip((targets_BL != IGNORE_INDEX).tolist(), wrong_BL.tolist(), strict=True):
        for has_label, positions in groupby(range(len(labelled)), key=labelled.__getitem__):
            if has_label:
                answers += 1
                right += not any(wrong[position] for position in positions)
    return torch.tensor([loss.item(), labelled_BK.sum().item(), right, answers], dtype=torch.float64)
