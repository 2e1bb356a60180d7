"""Limits what a decoding process can do. The process does so itself, before it reads a byte of a client's media.

Memory, processor time, open files and core dumps are limited on all systems, and writing files is disabled. On Linux
the process also cannot gain privileges and dies with its parent. If the kernel supports Landlock, it can open only the
files of the Python installation, and no TCP connection.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

try:
    import resource
except ImportError:  # on Windows only the time limit and the separate process remain
    resource = None

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

# Landlock's system calls have the same numbers on every architecture. Source: the kernel's uapi/linux/landlock.h.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_RIGHTS = 0b11  # bind and connect, since version 4
_SCOPES = 0b11  # abstract sockets and signals of other processes, since version 6
_READ_RIGHTS = 0b1100  # read files, list folders

OPEN_FILES = 64


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def die_with_parent(parent: int) -> None:
    """Make this process end when the thread that started it ends. Must be called first.

    Args:
        parent: process id of the server, which may already have ended.
    """
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.name == "posix" and os.getppid() != parent:
        os._exit(1)


def restrict(memory_bytes: int, cpu_seconds: int, readable: Iterable[str]) -> list[str]:
    """Set the limits, and return the names of those in force, for the log. Call it after all imports.

    Args:
        memory_bytes: bytes of address space on top of what the process uses now.
        cpu_seconds: seconds of processor time over the whole life of the process.
        readable: folders in which files may still be opened (for modules that are imported later).
    """
    done = []
    if resource is not None:
        for name, value in (
            ("AS", _address_space() + memory_bytes),
            ("CPU", cpu_seconds),
            ("CORE", 0),
            ("NOFILE", OPEN_FILES),
            ("FSIZE", 0),
        ):
            if _set_limit(name, value):
                done.append(name)
    if sys.platform == "linux":
        libc = _libc()
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            done.append("NO_NEW_PRIVS")
            if _landlock(libc, list(readable)):
                done.append("LANDLOCK")
    return done


def limit_cpu(seconds: float) -> None:
    """Have the kernel end the process (SIGXCPU) after this many more seconds of processor time."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _set_limit(name: str, value: int) -> bool:
    number = getattr(resource, f"RLIMIT_{name}", None)
    if resource is None or number is None:
        return False
    hard = resource.getrlimit(number)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(number, (value, value))
    except (ValueError, OSError):  # macOS refuses some of them
        return False
    return True


def _address_space() -> int:
    """Return the bytes of address space in use, or an estimate if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 1 << 30


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _landlock(libc: ctypes.CDLL, readable: Sequence[str]) -> bool:
    """Give up all access to files except reading below ``readable``; return False if the kernel does not support it."""
    libc.syscall.restype = ctypes.c_long
    # With this flag and no ruleset, the call returns Landlock's version. Later versions have more rights and a larger
    # structure, so only what the kernel knows is passed to it.
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    if version < 1:
        return False
    rules = _Ruleset(
        _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))],
        _TCP_RIGHTS if version >= 4 else 0,
        _SCOPES if version >= 6 else 0,
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        for folder in readable:
            _allow_reading(libc, ruleset, folder)
        return libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow_reading(libc: ctypes.CDLL, ruleset: int, folder: str) -> None:
    try:
        handle = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(_READ_RIGHTS, handle)
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(handle)
