"""An interpreter whose programs are forks of a process that has imported everything, for scripts that start many.

A script is given the path of a small program in place of Python's. That program passes its arguments, folder, variables
and standard streams to a server, which runs them in a fork, and then ends as the fork ended. Signals reach the fork,
and killing the program kills it. Arguments that it does not know go to the real interpreter.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.helpers import forked

CLIENT = """#!{python} -ISE
import json, os, signal, socket, sys

words = sys.argv[1:]
options = [word for word in words[:1] if word == "-u"]
target = words[len(options) : len(options) + 1]
if not target or target[0].startswith("-") and target[0] not in ("-", "-m", "-c"):
    os.execv({python!r}, [{python!r}, *words])
passed_on = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2
# They wait until the server knows what to run; before that it would take their numbers for a part of the request.
signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
variables = {{**os.environ, **({{"PYTHONUNBUFFERED": "1"}} if options else {{}})}}
request = json.dumps([words[len(options) :], os.getcwd(), variables]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
def pass_on(number, frame):
    try:
        server.sendall(bytes([number]))
    except OSError:  # the program has just ended
        pass

for number in passed_on:
    signal.signal(number, pass_on)
signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
told = server.recv(8)
if not told:
    sys.exit("the process that ran this program has died: " + " ".join(words))
code = int.from_bytes(told, "big", signed=True)
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""

_FORK = multiprocessing.get_context("fork")


@contextmanager
def forking_python(folder: Path) -> Iterator[Path]:
    """Write the program into ``folder``; what it starts ends with the block."""
    address = folder / "server"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        ours, theirs = multiprocessing.Pipe()
        server = forked.start_function(_serve, listener, theirs)
    theirs.close()
    program = folder / "python"
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    try:
        yield program
    finally:
        # Said in words, because closing is no sign: loader workers that a test forked may hold copies of this end.
        ours.send("end")
        forked.end_all([server], forked.JOIN_S)
        ours.close()


def _serve(listener: socket.socket, parent: Connection) -> None:
    """Start a process for each program, until the tests end."""
    # A signal to the whole group of the tests is for the programs; what watches over them ends when the tests do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    attending: dict[int, BaseProcess] = {}
    while parent not in (ready := wait([listener, parent, *attending])):
        for sentinel in attending.keys() & set(ready):
            attending.pop(sentinel).join()
        if listener in ready:
            client, _ = listener.accept()
            process = _FORK.Process(target=_attend, args=(client,))
            process.start()
            attending[process.sentinel] = process
            client.close()
    for process in attending.values():
        forked.kill(process)


def _attend(client: socket.socket) -> None:
    """Run one program in a fork of its own, pass signals on to it, and tell how it ended."""
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    (size,) = struct.unpack(">Q", head)
    with client.makefile("rb") as reader:
        words, folder, variables = json.loads(reader.read(size))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    program = _FORK.Process(target=_run, args=(words, folder, variables))
    program.start()
    assert program.pid is not None
    threading.Thread(target=_pass_on, args=(client, program.pid), daemon=True).start()
    program.join()
    assert program.exitcode is not None
    with suppress(OSError):  # the client was killed
        client.sendall(program.exitcode.to_bytes(8, "big", signed=True))


def _run(words: list[str], folder: str, variables: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    forked.become_python(words, folder, variables)


def _pass_on(client: socket.socket, pid: int) -> None:
    """Send a program the signals that its client got, and kill it when the client is gone."""
    with suppress(ProcessLookupError, ConnectionError):
        while number := client.recv(1):
            os.kill(pid, number[0])
    forked.kill_tree(pid)
