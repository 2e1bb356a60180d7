"""Gives processes that torchrun has started again a meeting place of their own (``--max-restarts``).

torchrun keeps one store for all attempts of a run, and torch 2.13 takes the keys in it for those of the present
attempt. The processes of a second attempt would therefore look for each other where those of the first one were, and
give up.
"""

from __future__ import annotations

import os
import socket

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - where its documentation has it


def meet_apart_from_former_attempts() -> None:
    """Let the processes of a later attempt agree on a new store, whose server is the first of them.

    It changes ``MASTER_PORT`` and ``TORCHELASTIC_USE_AGENT_STORE``, by which torch finds its store, and must be called
    before a process group is made. In a first attempt, and without torchrun, it does nothing.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return
    agent = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"videollama2/attempt_{attempt}/port"
    if os.environ["RANK"] == "0":
        with socket.socket() as listener:
            listener.bind(("", 0))
            agent.set(key, str(listener.getsockname()[1]))
    os.environ["MASTER_PORT"] = agent.get(key).decode()  # waits until the first process has set it
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(False)
