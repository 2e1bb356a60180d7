"""``train.py`` on processes of a launcher, one of which is killed without warning."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from videollama2 import train


def main(argv: list[str]) -> int:
    """Train; the second process of the first start kills itself when it begins a step.

    Args:
        argv: a folder, which gets a file named "START-RANK" from each process; the number of steps before the one in
            which the process dies; the flags of the training.
    """
    folder, steps, *flags = argv
    start, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
    (Path(folder) / f"{start}-{rank}").touch()
    trainer = train.VideoLlama2Trainer
    learn = trainer.training_step

    def die_or_learn(self: train.VideoLlama2Trainer, *args: Any, **kwargs: Any) -> Any:
        if (start, rank) == ("0", "1") and self.state.global_step == int(steps):
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(self, *args, **kwargs)

    trainer.training_step = die_or_learn
    return train.main(flags)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
