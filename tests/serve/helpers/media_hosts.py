"""Hosts that media are fetched from: web servers on loopback, and a resolver of names."""

import asyncio
import socket
import threading
from contextlib import contextmanager
from functools import lru_cache

import httpx
import pytest

from tests.serve.helpers.media import policy
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.fetch import MediaFetcher, resolve_host


class Web:
    """A web server on loopback that answers with the bytes it was given, path by path; an ellipsis waits."""

    def __init__(self, pages, context=None):
        self.pages, self.requests = pages, []
        self.visits = 0
        """Connections, whatever came over them."""
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.visits += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        try:
            with connection:
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                head = b""
                while b"\r\n\r\n" not in head:
                    data = connection.recv(4096)
                    if not data:
                        return
                    head += data
                self.requests.append(head.decode())
                page = self.pages[head.split(b" ")[1].decode()]
                for piece in page if isinstance(page, list) else [page]:
                    if piece is Ellipsis:
                        connection.recv(1)  # until the other end goes
                    else:
                        connection.sendall(piece)
        except OSError:
            pass

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections
        self._socket.close()


def ok(body, *headers):
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location, status=302):
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


@contextmanager
def web(pages, context=None):
    server = Web(pages, context)
    try:
        yield server
    finally:
        server.close()


class Names:
    """A resolver: name -> addresses, or a list of such answers, one per question."""

    def __init__(self, **names):
        self.names, self.asked = {name.replace("_", "."): found for name, found in names.items()}, []

    async def __call__(self, host, port):
        self.asked.append(host)
        found = self.names[host]
        if found and isinstance(found[0], list):
            found = found.pop(0)
        return found


@lru_cache
def public_certificates():
    """What a fetcher trusts by itself; reading it takes 25 ms."""
    return httpx.create_ssl_context()


def fetch(url, kind="image", resolve=resolve_host, tls=None, **changes):
    async def main():
        fetcher = MediaFetcher(policy(**changes), resolve, tls or public_certificates())
        return await fetcher.fetch(url, kind)

    return asyncio.run(main())


def refusal(url, kind="image", **options):
    with pytest.raises(RefusedMediaError) as caught:
        fetch(url, kind, **options)
    return caught.value
