"""Commands whose standard error is a terminal."""

import fcntl
import os
import struct
import subprocess
import termios
from contextlib import contextmanager

from tests.helpers.forked import killed_after


@contextmanager
def on_a_terminal(command, environment):
    """A process whose standard error is a terminal, where bars show, and a function that reads it; b"" at the end."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # bars need room

    def read():
        try:
            return os.read(master, 64)
        except OSError:  # every process that had it open has ended
            return b""

    process = subprocess.Popen(command, env=environment, stderr=slave, stdout=subprocess.DEVNULL)
    os.close(slave)
    try:
        with killed_after(process):
            yield process, read
    finally:
        os.close(master)
