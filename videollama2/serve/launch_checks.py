"""Checks what can be wrong before ``videollama2 serve`` starts its parts: models, devices, ports and accounts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from videollama2.constants import BUILT_IN_MODELS
from videollama2.errors import ConfigError
from videollama2.hub_connection import check_is_there
from videollama2.serve.worker.flags import RAY, model_paths_of

_LOCAL = "127.0.0.1"
_LAST_PORT = 65535


def check_before_start(args: argparse.Namespace) -> None:
    """Check the flags of ``videollama2 serve`` as far as no model need be loaded for it.

    This process does not import torch: it only watches the others, and a device would be occupied.

    Raises:
        VideoLlama2Error: a model is missing, a device or an account file cannot be used, or a port is taken.
    """
    for name in (*model_paths_of(args), *([args.model_base] if args.model_base else ())):
        if name not in BUILT_IN_MODELS:
            check_is_there(name)
    if args.auth_file is not None and not args.no_page:
        from videollama2.serve.page.server import read_accounts

        read_accounts(args.auth_file)
    check_ports(args)
    if args.engine == "own":
        _check_placement(args)


def check_ports(args: argparse.Namespace) -> None:
    """Check that no two parts have one port, and that all ports are free on which a part of this package listens.

    Raises:
        ConfigError: one is not.
    """
    from videollama2.serve.web.server import bind

    taken: dict[int, str] = {}
    for flag, host, port in _ports(args):
        if port > _LAST_PORT:
            raise ConfigError(f"{flag}: the last of the workers would have port {port}, above {_LAST_PORT}")
        if port in taken:
            raise ConfigError(f"{taken[port]} and {flag} have one port, {port}")
        taken[port] = flag
        if args.engine == RAY and flag == "--api-port":
            continue  # Serve's proxy may listen there already, for other applications of the cluster
        try:
            bind(host, port).close()
        except ConfigError as error:
            raise ConfigError(f"{flag}: {error}") from error


def _ports(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Yield the flag, the host and the port of each part."""
    yield "--api-port", args.host, args.api_port
    if not args.no_page:
        yield "--port", args.host, args.page_port
    if args.engine == RAY:
        return
    yield "--controller-port", _LOCAL, args.controller_port
    for place in range(len(model_paths_of(args)) * args.workers):
        yield "--worker-port", _LOCAL, args.worker_port + place


def _check_placement(args: argparse.Namespace) -> None:
    """Check the device and the packages that were asked for, in a process that ends: it imports torch."""
    bits = 8 if args.load_8bit else 4 if args.load_4bit else 16
    if args.device in (None, "cpu") and args.attn_implementation == "sdpa" and bits == 16:
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_try_placement, args.device, args.attn_implementation, bits).result()


def _try_placement(device: str | None, attention: str, bits: int) -> None:
    from videollama2.checkpoints.placement import as_dtype, check_attention, check_device, default_device
    from videollama2.checkpoints.quantisation import is_cpu_only, quantization_config

    device = check_device(device or default_device())
    check_attention(attention)
    if not (bits == 8 and is_cpu_only({"": device})):
        quantization_config(bits, as_dtype(None, device))
