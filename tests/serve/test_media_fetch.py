"""Fetching media: every address is checked, and the checked one is connected to."""

import asyncio
import socket
import ssl
import subprocess

import pytest

from tests.serve.helpers.media import policy
from tests.serve.helpers.media_hosts import Names, fetch, ok, public_certificates, redirect, refusal, web
from videollama2.serve.settings import MediaPolicy
from videollama2.serve.untrusted_media.addresses import check_resolved
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.fetch import MAX_REDIRECTS, MediaFetcher, resolve_host

# ------------------------------------------------------------------------------------------------------------ addresses


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"]


PRIVATE = ["127.0.0.1", "127.255.0.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "::1", "fc00::1", "fd12::9"]


NEVER = [
    "169.254.169.254",
    "169.254.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:1::1",
    "2001:db8::1",
    "::ffff:0:7f00:1",
    "100::1",
]


def test_public_addresses_are_allowed():
    assert check_resolved(PUBLIC, private=False) == PUBLIC
    assert check_resolved(PUBLIC, private=True) == PUBLIC


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_for_hosts_named_with_a_port(address):
    assert check_resolved([address], private=True) == [address]
    with pytest.raises(RefusedMediaError, match="not fetched from"):
        check_resolved([address], private=False)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_for_nobody(address, private):
    with pytest.raises(RefusedMediaError) as caught:
        check_resolved([address], private)
    assert caught.value.code == "media_not_allowed"
    assert address.partition("%")[0] not in str(caught.value)


def test_one_bad_address_among_good_ones_is_refused():
    with pytest.raises(RefusedMediaError):
        check_resolved(["8.8.8.8", "127.0.0.1"], private=False)


def test_a_host_without_addresses_is_refused():
    with pytest.raises(RefusedMediaError, match="no address"):
        check_resolved([], private=False)


# ------------------------------------------------------------------------------------------------------------- fetching


def test_nothing_is_fetched_unless_allowed():
    names = Names(a_example=["127.0.0.1"])
    with web({"/x": ok(b"media")}) as server:
        for url in (f"http://127.0.0.1:{server.port}/x", f"http://a.example:{server.port}/x", "http://a.example/x"):
            error = refusal(url, resolve=names)
            assert (error.status, error.code) == (400, "media_not_allowed")
    assert not server.requests
    assert not names.asked  # not even the name is looked up


def test_a_host_with_its_port_may_be_private():
    with web({"/x?y=1": ok(b"media")}) as server:
        allowed = frozenset({f"cdn.local:{server.port}"})
        names = Names(cdn_local=["127.0.0.1"])
        url = f"http://cdn.local:{server.port}/x?y=1#z"
        assert fetch(url, resolve=names, allowed_hosts=allowed) == b"media"
    (request,) = server.requests
    assert request.startswith("GET /x?y=1 HTTP/1.1\r\n")
    assert f"\r\nHost: cdn.local:{server.port}\r\n" in request
    assert "accept-encoding: identity" in request.lower()
    assert names.asked == ["cdn.local"]


def test_a_host_without_a_port_may_not():
    names = Names(a_example=["127.0.0.1"])
    error = refusal("http://a.example/x", resolve=names, allowed_hosts=frozenset({"a.example"}))
    assert error.code == "media_not_allowed"
    error = refusal("http://127.0.0.1/x", allowed_hosts=frozenset({"127.0.0.1"}))
    assert "an address that is not fetched from" in str(error)


@pytest.mark.parametrize("url", ["http://a.example:8080/", "https://a.example:80/", "http://b.a.example/"])
def test_an_entry_is_one_host_at_one_port(url):
    error = refusal(url, resolve=Names(), allowed_hosts=frozenset({"a.example"}))
    assert error.code == "media_not_allowed"


def test_a_name_that_changes_its_mind_changes_nothing():
    """DNS rebinding: the connection goes to the address that was checked, and the name is asked once."""
    with web({"/x": ok(b"media")}) as server:
        names = Names(cdn_local=[["127.0.0.1"], ["169.254.169.254"], ["169.254.169.254"]])
        allowed = frozenset({f"cdn.local:{server.port}"})
        assert fetch(f"http://cdn.local:{server.port}/x", resolve=names, allowed_hosts=allowed) == b"media"
    assert names.asked == ["cdn.local"]


def test_another_address_of_the_host_is_tried():
    with web({"/x": ok(b"media")}) as server:
        names = Names(cdn_local=["127.0.0.2", "127.0.0.1"])  # the server listens on the second alone
        allowed = frozenset({f"cdn.local:{server.port}"})
        assert fetch(f"http://cdn.local:{server.port}/x", resolve=names, allowed_hosts=allowed) == b"media"


def test_redirects_are_followed_within_the_list():
    with web({"/1": redirect("/2"), "/2": redirect("3", 307), "/3": ok(b"media")}) as server:
        allowed = frozenset({f"127.0.0.1:{server.port}"})
        assert fetch(f"http://127.0.0.1:{server.port}/1", allowed_hosts=allowed) == b"media"
    assert len(server.requests) == 3


def test_every_redirect_is_checked_again():
    with web({"/secret": ok(b"secret")}) as inner:
        targets = [
            f"http://127.0.0.1:{inner.port}/secret",
            "http://169.254.169.254/latest/meta-data/",
            f"http://localhost:{inner.port}/secret",
            "file:///etc/passwd",
            f"http://2130706433:{inner.port}/secret",
            f"//[::ffff:127.0.0.1]:{inner.port}/secret",
        ]
        pages = {f"/{number}": redirect(target) for number, target in enumerate(targets)}
        with web(pages) as server:
            for number in range(len(targets)):
                url = f"http://127.0.0.1:{server.port}/{number}"
                error = refusal(url, allowed_hosts=frozenset({f"127.0.0.1:{server.port}"}))
                assert error.code in ("media_not_allowed", "invalid_media_url")
    assert not inner.requests


def test_a_redirect_to_a_name_that_is_private_is_refused():
    names = Names(a_local=["127.0.0.1"], b_example=["10.0.0.1"])
    with web({"/x": redirect("http://b.example/x")}) as server:
        allowed = frozenset({f"a.local:{server.port}", "b.example"})
        error = refusal(f"http://a.local:{server.port}/x", resolve=names, allowed_hosts=allowed)
    assert error.code == "media_not_allowed"
    assert names.asked == ["a.local", "b.example"]


def test_redirects_end():
    with web({"/x": redirect("/x")}) as server:
        error = refusal(f"http://127.0.0.1:{server.port}/x", allowed_hosts=frozenset({f"127.0.0.1:{server.port}"}))
        assert f"more than {MAX_REDIRECTS} redirects" in str(error)
    assert len(server.requests) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    ("page", "status", "code"),
    [
        (ok(bytes(2000)), 413, "media_too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", 413, "media_too_large"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(2000), 413, "media_too_large"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"100\r\n" + bytes(256) + b"\r\n"] * 9, ...],
            413,
            "media_too_large",
        ),
        (ok(b"x", "Content-Encoding: gzip"), 400, "media_fetch_failed"),
        (ok(b"x", "Content-Encoding: br"), 400, "media_fetch_failed"),
        (ok(b""), 400, "invalid_media"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\nsecret", 400, "media_fetch_failed"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx", 400, "media_fetch_failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", 400, "media_fetch_failed"),
        (b"no http at all\r\n\r\n", 400, "media_fetch_failed"),
        (b"", 400, "media_fetch_failed"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nslow", ...], 400, "media_timeout"),
        ([...], 400, "media_timeout"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 400, "media_fetch_failed"),
    ],
)
def test_what_a_host_may_answer(page, status, code):
    with web({"/x": page}) as server:
        error = refusal(
            f"http://127.0.0.1:{server.port}/x",
            allowed_hosts=frozenset({f"127.0.0.1:{server.port}"}),
            max_bytes=1000,
            fetch_timeout_s=0.1 if code == "media_timeout" else 20.0,
        )
    assert (error.status, error.code) == (status, code)
    assert "secret" not in str(error)
    assert "127.0.0.1" not in str(error)


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    with web({"/x": ok(b"media")}) as server, web({}) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        allowed = frozenset({f"127.0.0.1:{server.port}"})
        assert fetch(f"http://127.0.0.1:{server.port}/x", allowed_hosts=allowed) == b"media"
    assert not proxy.requests


def test_the_host_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = refusal(f"http://127.0.0.1:{port}/x", allowed_hosts=frozenset({f"127.0.0.1:{port}"}))
    assert str(error) == "a media URL could not be fetched"


def test_a_name_that_is_none():
    async def unknown(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    error = refusal("http://a.example/", resolve=unknown, allowed_hosts=frozenset({"a.example"}))
    assert error.code == "media_fetch_failed"


def test_tls_is_checked_against_the_name(tmp_path):
    """The connection goes to an IP address; certificate and SNI are those of the name."""
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=cdn.local",
            "-addext",
            "subjectAltName=DNS:cdn.local",
            "-keyout",
            tmp_path / "key.pem",
            "-out",
            tmp_path / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    seen = []
    context.sni_callback = lambda _, name, __: seen.append(name)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with web({"/x": ok(b"media")}, context) as server:
        names = Names(cdn_local=["127.0.0.1"], evil_local=["127.0.0.1"])
        allowed = frozenset({f"cdn.local:{server.port}", f"evil.local:{server.port}"})
        options = {"resolve": names, "allowed_hosts": allowed}
        assert fetch(f"https://cdn.local:{server.port}/x", tls=trusted, **options) == b"media"
        assert refusal(f"https://evil.local:{server.port}/x", tls=trusted, **options).code == "media_fetch_failed"
        assert refusal(f"https://cdn.local:{server.port}/x", **options).code == "media_fetch_failed"
    assert seen[:2] == ["cdn.local", "evil.local"]


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_a_fetch_that_is_cancelled_leaves_no_connection(steps):
    """At whatever step it is: the other end must see the connection close."""

    async def main():
        seen = []

        async def serve(reader, writer):
            seen.append(asyncio.current_task())
            await reader.read()  # until the fetcher goes
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fetcher = MediaFetcher(policy(allowed_hosts=frozenset({f"127.0.0.1:{port}"})), tls=public_certificates())
        task = asyncio.ensure_future(fetcher.fetch(f"http://127.0.0.1:{port}/x", "image"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.sleep(0.01)
        if seen:
            await asyncio.wait_for(asyncio.gather(*seen), 5)

    asyncio.run(main())


def test_the_systems_resolver():
    assert set(asyncio.run(resolve_host("localhost", 80))) <= {"127.0.0.1", "::1"}


# ----------------------------------------------------------------------------------------------------------------- data


def test_the_log_of_a_refusal_holds_no_path_or_query():
    """A signed URL is a credential."""
    for url in ("https://not.example/path?signature=secret", "https://a.example/path?signature=secret"):
        policy = MediaPolicy(allowed_hosts=frozenset({"a.example"}), fetch_timeout_s=5)
        fetcher = MediaFetcher(policy, resolve=_nowhere)
        with pytest.raises(RefusedMediaError) as raised:
            asyncio.run(fetcher.fetch(url, "image"))
        assert "example" in raised.value.detail and "secret" not in raised.value.detail + str(raised.value)


async def _nowhere(host, port):
    raise OSError("no such host")
