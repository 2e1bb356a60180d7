"""``train.py`` on processes that kill themselves without warning when they begin a certain step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from videollama2 import train

ALL = "all"


def main(argv: list[str]) -> int:
    """Train until the process dies.

    Args:
        argv: a folder, which gets a file named "START-RANK" from each process; the name of the file of the process that
            dies, or "all"; the number of steps before the one in which it dies; the flags of the training.
    """
    folder, doomed, steps, *flags = argv
    name = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}-{os.environ.get('RANK', 0)}"
    (Path(folder) / name).touch()
    trainer = train.VideoLlama2Trainer
    learn = trainer.training_step

    def die_or_learn(self: train.VideoLlama2Trainer, *args: Any, **kwargs: Any) -> Any:
        if doomed in (name, ALL) and self.state.global_step == int(steps):
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(self, *args, **kwargs)

    trainer.training_step = die_or_learn
    return train.main(flags)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
