"""Runs a page: a hardened Gradio behind :mod:`videollama2.serve.page.guard`. Both page commands use it."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from videollama2.errors import ConfigError
from videollama2.serve.page.votes import VoteLog
from videollama2.serve.settings import MediaPolicy, is_loopback
from videollama2.serve.web.server import HEADER_TIMEOUT_S, bind, ended_by_signals, server_config

if TYPE_CHECKING:
    from videollama2.serve.page.backends import PageBackend

CLOSE_TIMEOUT_S = 15.0
"""Time for a page to end. Its server gives running answers 5 s; if it hangs, its thread ends with the process."""


def add_page_flags(parser: argparse.ArgumentParser, max_upload_mb: int) -> None:
    """Add the flags that both page commands share.

    Args:
        max_upload_mb: default of ``--max-upload-mb``.
    """
    page = parser.add_argument_group("page")
    page.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1",
        help="address to listen on (default %(default)s; also: GRADIO_SERVER_NAME)",
    )
    page.add_argument(
        "--port",
        type=int,
        default=os.environ.get("GRADIO_SERVER_PORT") or 7860,
        help="default %(default)s; also: GRADIO_SERVER_PORT",
    )
    page.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which visitors reach the page, e.g. behind a reverse proxy; repeatable "
        "(addresses and localhost are always allowed)",
    )
    page.add_argument(
        "--share", action="store_true", help="also open a public address at gradio.live, for everyone who knows it"
    )
    page.add_argument(
        "--concurrency-count",
        type=int,
        default=16,
        metavar="N",
        help="answers computed at once; more wait (default %(default)s)",
    )
    page.add_argument(
        "--vote-log",
        default="runs/votes.jsonl",
        metavar="FILE",
        help="votes and flags, as JSON lines (default %(default)s); '' takes none",
    )
    page.add_argument("--auth-file", metavar="FILE", help="accounts of the page, as lines 'user:password'")
    page.add_argument("--root-path", metavar="PATH", help="path at which a reverse proxy shows the page, e.g. /demo")
    page.add_argument(
        "--max-upload-mb", type=int, default=max_upload_mb, metavar="MB", help="largest file (default %(default)s)"
    )
    page.add_argument(
        "--max-uploads-gb",
        type=float,
        default=20,
        metavar="GB",
        help="largest size of all uploads on the disk together (default %(default)s)",
    )


def check_page_flags(args: argparse.Namespace) -> None:
    """Check the values of the flags before anything slow happens.

    Raises:
        ConfigError: a value is out of range, or the file of accounts cannot be used.
    """
    if args.auth_file is not None:
        read_accounts(args.auth_file)
    if not 0 <= args.port < 1 << 16:
        raise ConfigError(f"--port must be from 0 to 65535, got {args.port}")
    for flag, value in (
        ("--concurrency-count", args.concurrency_count),
        ("--max-upload-mb", args.max_upload_mb),
        ("--max-uploads-gb", args.max_uploads_gb),
    ):
        if value <= 0:
            raise ConfigError(f"{flag} must be above 0, got {value}")


def read_accounts(path: str | Path) -> dict[str, bytes]:
    """Read a file of accounts, and return users with digests of their passwords.

    Raises:
        ConfigError: the file cannot be read, has no account, or has a line without a colon.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: --auth-file cannot be read ({error})") from error
    accounts = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        user, colon, password = line.partition(":")
        if not colon or not user or not password:
            raise ConfigError(f"{path}, line {number}: is not 'user:password'")
        accounts[user] = _digest(password)
    if not accounts:
        raise ConfigError(f"{path}: --auth-file lists no user")
    return accounts


def check_account(accounts: dict[str, bytes], user: str, password: str) -> bool:
    """Return whether user and password match, in the same time whether or not the user exists."""
    known = accounts.get(user, b"\0" * 32)
    return hmac.compare_digest(known, _digest(password)) and user in accounts


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@contextmanager
def uploads_folder() -> Iterator[Path]:
    """Create a folder for visitors' uploads, and delete it at the end. Enter it before the page is built."""
    names = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="videollama2-page-", ignore_cleanup_errors=True) as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@dataclass
class RunningPage:
    """A page that is being served.

    Attributes:
        address: address of the page, without a trailing slash.
    """

    address: str
    _page: Any
    _server: Any
    _thread: Thread

    def close(self) -> None:
        """Stop the server and all answers in progress."""
        self._server.should_exit = True
        self._thread.join(CLOSE_TIMEOUT_S)
        self._page.close(verbose=False)


def launch_page(
    page: Any,
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    accounts: dict[str, bytes] | None = None,
    root_path: str | None = None,
    max_file_bytes: int = 256 << 20,
    max_folder_bytes: int = 20 << 30,
    names: Collection[str] = (),
    header_timeout_s: float = HEADER_TIMEOUT_S,
) -> RunningPage:
    """Serve a page of :func:`videollama2.serve.page.build.build_page` in a separate thread.

    Gradio's own ``launch`` is not used because it has no timeout for connections that send nothing or half a request.

    Args:
        folder: the folder of :func:`uploads_folder`.
        port: port to listen on; 0 takes a free one.
        names: host names by which the page is reached, besides ``localhost`` and IP addresses.
        header_timeout_s: seconds for a request's headers to arrive on an open connection.

    Raises:
        ConfigError: the port is taken, or no public address could be obtained.
    """
    import uvicorn
    from starlette.middleware import Middleware

    from videollama2.serve.page.guard import Guard

    space = os.environ.get("SPACE_HOST")
    known = [*names, *([host] if host else []), *([space] if space else []), *([".gradio.live"] if share else [])]
    guard = Middleware(
        Guard,
        folder=folder,
        max_file_bytes=max_file_bytes,
        max_folder_bytes=max_folder_bytes,
        names=known,
        embedded_in=("https://huggingface.co",) if space else (),
    )
    listener = bind(host, port)
    app = _application(page, guard, accounts, max_file_bytes, root_path)
    server = uvicorn.Server(server_config(app, header_timeout_s))
    thread = Thread(target=server.run, args=([listener],), name="videollama2-page", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise ConfigError("the page could not be started, see the log")
        thread.join(0.02)
    place = listener.getsockname()
    shown = f"[{place[0]}]" if ":" in place[0] else "localhost" if place[0] == "0.0.0.0" else place[0]
    address = _public_address(place[1]) if share else f"http://{shown}:{place[1]}"
    return RunningPage(address, page, server, thread)


def _application(
    page: Any, guard: Any, accounts: dict[str, bytes] | None, max_file_bytes: int, root_path: str | None
) -> Any:
    """Return the page as an ASGI application behind its guard."""
    import gradio as gr
    from fastapi import FastAPI

    from videollama2.serve.page.style import page_css, page_theme

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, middleware=[guard])
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=None if accounts is None else lambda user, password: check_account(accounts, user, password),
        allowed_paths=[],
        max_file_size=max_file_bytes,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=False,
        run_history=False,
        footer_links=[],
        root_path=root_path,
        theme=page_theme(),
        css=page_css(),
    )
    # Gradio refuses the paths of files that were never uploaded only for a page that "has launched".
    page.has_launched = page.is_running = True
    return app


def _public_address(port: int) -> str:
    """Return a public address at gradio.live that forwards to this port.

    Raises:
        ConfigError: no address could be obtained.
    """
    from secrets import token_urlsafe

    from gradio import networking

    try:
        return networking.setup_tunnel("127.0.0.1", port, token_urlsafe(32), None, None).rstrip("/")
    except Exception as error:
        raise ConfigError(f"--share: no public address could be opened ({error})") from error


def run_page(make_backend: Callable[[MediaPolicy], PageBackend], args: argparse.Namespace) -> None:
    """Serve a page until Ctrl-C or SIGTERM, with a back end that is made after the flags have been checked.

    Args:
        make_backend: makes the back end, with the limits on uploaded media. Loading models may take minutes.
        args: the flags of :func:`add_page_flags`.

    Raises:
        ConfigError: see :func:`check_page_flags`, :func:`open_log`, :func:`launch_page` and :func:`read_accounts`.
    """
    check_page_flags(args)
    log = open_log(args)
    with uploads_folder() as folder:
        from videollama2.serve.page.build import build_page
        from videollama2.serve.page.layout import PageSettings

        backend = make_backend(MediaPolicy(max_bytes=args.max_upload_mb << 20))
        try:
            settings = PageSettings(log=log, concurrency=args.concurrency_count, uploads=folder)
            _serve(build_page(backend, settings), folder, args)
        finally:
            backend.close()


def _serve(page: Any, folder: Path, args: argparse.Namespace) -> None:
    accounts = None if args.auth_file is None else read_accounts(args.auth_file)
    if accounts is None and (args.share or not is_loopback(args.host)):
        who = "knows the shared address" if args.share else f"reaches {args.host}"
        print(f"warning: everybody who {who} can use this page (--auth-file)", file=sys.stderr)
    with ended_by_signals() as ended:
        running = launch_page(
            page,
            folder,
            host=args.host,
            port=args.port,
            share=args.share,
            accounts=accounts,
            root_path=args.root_path,
            max_file_bytes=args.max_upload_mb << 20,
            max_folder_bytes=int(args.max_uploads_gb * (1 << 30)),
            names=args.allowed_host,
        )
        print(f"the page is ready: {running.address} (Ctrl-C ends it)")
        ended.wait()
        running.close()


def open_log(args: argparse.Namespace) -> VoteLog | None:
    """Open the vote log that ``--vote-log`` names.

    Raises:
        ConfigError: the log cannot be written.
    """
    return VoteLog(Path(args.vote_log).resolve()) if args.vote_log else None
