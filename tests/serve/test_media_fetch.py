"""Where media may come from: one parser, every address checked, the checked one connected to."""

import asyncio
import base64
import os
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager

import pytest

from tests.serve.api_fixtures import data_url, policy, write
from videollama2.serve import long_text
from videollama2.serve.settings import MediaPolicy
from videollama2.serve.untrusted_media.addresses import check_resolved
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.fetch import MAX_REDIRECTS, MediaFetcher, resolve_host
from videollama2.serve.untrusted_media.files import read_below
from videollama2.serve.untrusted_media.urls import WebAddress, follow, parse_data, parse_file, parse_web


class Web:
    """A web server on loopback that answers with the bytes it was given, path by path."""

    def __init__(self, pages, context=None):
        self.pages, self.requests = pages, []
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


def fetch(url, kind="image", resolve=None, tls=None, **changes):
    async def main():
        fetcher = MediaFetcher(policy(**changes), **({"resolve": resolve} if resolve else {}), tls=tls)
        return await fetcher.fetch(url, kind)

    return asyncio.run(main())


def refusal(url, kind="image", **options):
    with pytest.raises(RefusedMediaError) as caught:
        fetch(url, kind, **options)
    return caught.value


# ---------------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.example", WebAddress("http", "a.example", 80, "/")),
        (
            "HTTPS://CDN.Example:8443/x/y.png?z=1&q=a?b#part",
            WebAddress("https", "cdn.example", 8443, "/x/y.png?z=1&q=a?b"),
        ),
        ("http://[::1]:9/a", WebAddress("http", "::1", 9, "/a")),
        ("http://[0:0::0:1]/", WebAddress("http", "::1", 80, "/")),
        ("http://8.8.8.8?q", WebAddress("http", "8.8.8.8", 80, "/?q")),
        ("https://xn--bcher-kva.example/", WebAddress("https", "xn--bcher-kva.example", 443, "/")),
    ],
)
def test_plain_urls_are_read(url, expected):
    assert parse_web(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://user@a.example/",
        "http://user:pw@a.example/",
        "http://a.example@127.0.0.1/",  # somebody else's host
        "http://a.example\\@127.0.0.1/",
        "http://a.example\\.b/",
        "http:\\\\a.example/",
        "http://a.example/\\x",
        "http://a.example#@127.0.0.1/ x",
        "http:///a.example/",
        "http:a.example",
        "http:/a.example",
        "http://127.1/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://0x7f.0.0.1/",
        "http://0x7f000001/",
        "http://127.0.0.1.1/",
        "http://1.2.3/",
        "http://a.0x7f/",  # numbers that are addresses to some
        "http://ⓛⓞⓒⓐⓛ.example/",
        "http://bücher.example/",
        "http://a。example/",
        "http://127。0。0。1/",
        "http://１２７.0.0.1/",
        "http://a%2eexample/",
        "http://127.0.0.1%00.a.example/",
        "http://a.example%40b/",
        "http://a.example./",
        "http://a..example/",
        "http://-a.example/",
        "http://a_.example:x/",
        "http://a.example:0/",
        "http://a.example:65536/",
        "http://a.example:/",
        "http://a.example:80:90/",
        "http://:80/",
        "http://[::1",
        "http://[::1%25eth0]/",
        "http://[v1.x]/",
        "http://[127.0.0.1]/",
        "http://[::1]x/",
        "http://a.example/\n",
        "http://a.example/ x",
        "\thttp://a.example/",
        "http://a.exa\nmple/",
        "http://a.example/\0",
        "http://a.example/\r\nHost: b",
        "http://a.example/é",
        "http://" + "a" * 64 + ".example/",
        "http://a.example/" + "x" * 9000,
    ],
)
def test_anything_else_is_refused(url):
    with pytest.raises(RefusedMediaError) as caught:
        parse_web(url)
    assert caught.value.code == "invalid_media_url"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/x",
        "gopher://a",
        "javascript:alert(1)",
        "a.png",
        "/etc/passwd",
        "//a.example/x",
        "",
        "blob:x",
        "concat:/etc/passwd",
        "pipe:0",
        "C:\\x.png",
        "fi le:///x",
        "unix:/run/docker.sock",
        "jar:http://a!/x",
    ],
)
def test_other_schemes_are_refused(url):
    assert refusal(url).code == "invalid_media_url"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/other?x", "http://a.example:8080/other?x"),
        ("next.png", "http://a.example:8080/folder/next.png"),
        ("//b.example/x", "http://b.example/x"),
        ("https://b.example/", "https://b.example/"),
        ("x?y=http://z/", "http://a.example:8080/folder/x?y=http://z/"),
    ],
)
def test_redirects_are_read_by_the_same_parser(location, expected):
    assert str(follow(parse_web("http://a.example:8080/folder/page?q"), location)) == expected


@pytest.mark.parametrize(
    "location",
    [
        "http:/\\127.0.0.1/",
        "//127.1/",
        "///x",
        "file:///etc/passwd",
        "\\\\b",
        "//u@b/",
    ],
)
def test_redirects_to_odd_places_are_refused(location):
    with pytest.raises(RefusedMediaError):
        follow(parse_web("http://a.example/page"), location)


def test_a_redirect_does_not_lead_out_of_tls():
    with pytest.raises(RefusedMediaError, match="https to http"):
        follow(parse_web("https://a.example/"), "http://a.example/")


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
            fetch_timeout_s=0.5 if code == "media_timeout" else 10.0,
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
            "rsa:2048",
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
        fetcher = MediaFetcher(policy(allowed_hosts=frozenset({f"127.0.0.1:{port}"})))
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


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    write(folder / "clip.mp4", b"clip")
    write(folder / "deep" / "a b#ü.png", b"odd")
    write(tmp_path / "secret", b"secret")
    (tmp_path / "media-other").mkdir()
    write(tmp_path / "media-other" / "x", b"secret")
    return folder


def test_files_below_the_root_are_read(root):
    assert fetch(f"file://{root}/clip.mp4", media_root=root) == b"clip"
    assert fetch(f"file://{root}/deep/a%20b%23%C3%BC.png", media_root=root) == b"odd"
    (root / "link.mp4").symlink_to("clip.mp4")
    assert fetch(f"file://{root}/link.mp4", media_root=root) == b"clip"


def test_without_a_root_there_are_no_files(root):
    error = refusal(f"file://{root}/clip.mp4")
    assert error.code == "media_not_allowed"


@pytest.mark.parametrize(
    "url",
    [
        "file://{root}/../secret",
        "file://{root}/%2e%2e/secret",
        "file://{root}/deep/../../secret",
        "file:///etc/passwd",
        "file://{root}/..%2fsecret",
        "file://{root}-other/x",
        "file://{root}",
        "file://{root}/",
        "file://{root}/deep",
        "file://{root}/none",
        "file://localhost{root}/clip.mp4",
        "file:{root}/clip.mp4",
        "file:clip.mp4",
        "file://host/x",
        "file:////{root}/clip.mp4",
        "file://{root}/clip.mp4%00.png",
        "file://{root}/clip.mp4?x",
        "file://{root}/%ff",
        "file://{root}/..\\secret",
        "file:///proc/self/environ",
        "file:///dev/zero",
        "file:///dev/stdin",
    ],
)
def test_names_that_lead_elsewhere_are_refused(root, url):
    error = refusal(url.replace("{root}", str(root)), media_root=root)
    assert error.status == 400
    assert str(root) not in str(error)
    assert "secret" not in str(error)


def test_links_out_of_the_root_are_refused(root, tmp_path):
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "out-folder").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    (root / "device").symlink_to("/dev/zero")
    messages = set()
    for name in ("out", "out-folder/secret", "loop", "device", "none"):
        messages.add(str(refusal(f"file://{root}/{name}", media_root=root)))
    assert len(messages) == 1  # what lies outside and what does not exist sound the same


def test_pipes_and_sockets_are_refused_without_waiting(root):
    os.mkfifo(root / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "socket"))
    for name in ("pipe", "socket"):
        assert refusal(f"file://{root}/{name}", media_root=root).code == "media_not_found"
    listener.close()


def test_a_file_swapped_for_a_link_is_noticed(root, tmp_path, monkeypatch):
    """The name is checked, then swapped, then opened: what was opened counts."""
    real_open = os.open

    def swap(path, *rest):
        if str(path).endswith("clip.mp4"):
            os.rename(root / "deep", root / "gone")
            os.symlink(tmp_path, root / "deep")
        return real_open(path, *rest)

    write(root / "deep" / "clip.mp4", b"clip")
    write(tmp_path / "clip.mp4", b"secret")
    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(RefusedMediaError):
        read_below(root, str(root / "deep" / "clip.mp4"), 100)


def test_large_and_empty_files_are_refused(root):
    write(root / "large", bytes(1001))
    write(root / "empty", b"")
    assert refusal(f"file://{root}/large", media_root=root, max_bytes=1000).status == 413
    assert str(refusal(f"file://{root}/empty", media_root=root)) == "a file is empty"


def test_a_root_that_is_a_link_is_followed_once(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    assert fetch(f"file://{tmp_path}/alias/clip.mp4", media_root=tmp_path / "alias") == b"clip"
    assert parse_file("file:///a/b") == "/a/b"


# ----------------------------------------------------------------------------------------------------------------- data


def test_data_urls():
    assert fetch(data_url(b"png", "image/png")) == b"png"
    assert fetch("DATA:IMAGE/PNG;Base64," + base64.b64encode(b"x").decode()) == b"x"
    assert fetch(data_url(b"mp4", "video/mp4;codecs=avc1.42E01E"), "video") == b"mp4"
    assert fetch(data_url(b"gif", "image/gif"), "video") == b"gif"
    assert fetch(data_url(b"?", "application/octet-stream"), "video") == b"?"
    assert fetch("data:image/png;base64,YW\r\nJj\n") == b"abc", "MIME's base64 is in lines"
    frames = ",".join(base64.b64encode(frame).decode() for frame in (b"one", b"two!"))
    assert fetch(f"data:video/jpeg;base64,{frames}", "video") == [b"one", b"two!"]


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("data:image/png,abc", "image"),
        ("data:;base64,YWJj", "image"),
        ("data:image/png;base64,", "image"),
        ("data:image/png;base64,YW Jj", "image"),
        ("data:image/png;base64,YWJj=", "image"),
        ("data:image/png;base64,YWJ", "image"),
        ("data:image/png;base64,YW%4Aj", "image"),
        ("data:image/png;base64,YW Jj", "image"),
        ("data:image/png;base64,YWJ\n", "image"),
        ("data:image/png;base64,ÿÿÿÿ", "image"),
        ("data:text/html;base64,YWJj", "image"),
        ("data:video/mp4;base64,YWJj", "image"),
        ("data:image/jpeg;base64,YWJj", "video"),
        ("data:image/jpeg;base64,YWJj,YWJj", "image"),
        ("data:video/jpeg;base64,YWJj,,YWJj", "video"),
        ("data:video/mp4;base64,YWJj,YWJj", "video"),
        ("data:", "image"),
        ("data:image/png;x=" + "y" * 5000 + ";base64,YWJj", "image"),
        ("data:application/x-python-pickle;base64,gASVAAAA", "image"),
    ],
)
def test_data_urls_that_are_none(url, kind):
    assert refusal(url, kind).status == 400


def test_large_base64_is_decoded_in_pieces(monkeypatch):
    monkeypatch.setattr(long_text, "PIECE", 8)
    for count in (5, 6, 7, 11, 12, 13):
        content = bytes(range(count))
        url = "data:image/png;base64," + base64.b64encode(content).decode()
        assert parse_data(url, "image", 100, 1) == content
    for text in ("AAAAAA==AAAA", "AAA=AAAAAAAA", "AAAAAAA=AAAAAAAA", "AAAAAAAA===="):
        with pytest.raises(RefusedMediaError, match="base64"):
            parse_data("data:image/png;base64," + text, "image", 100, 1)


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


def test_sizes_and_counts_are_checked_before_decoding():
    frames = "data:video/jpeg;base64," + "," * 100_000
    assert "100001 frames has more than the 64" in str(refusal(frames, "video"))
    # Not base64 at all: that it is too long is found first.
    assert refusal("data:image/png;base64," + "!" * 4000, max_bytes=1000).status == 413
    with pytest.raises(RefusedMediaError):
        parse_data("data:video/jpeg;base64," + ",".join(["YWJj"] * 5), "video", 1000, 4)
