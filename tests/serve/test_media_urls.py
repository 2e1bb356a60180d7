"""URLs of media: one parser that refuses whatever it does not know, and the data that a URL can hold."""

import base64

import pytest

from tests.serve.helpers.media import data_url
from tests.serve.helpers.media_hosts import fetch, refusal
from videollama2.serve import long_text
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.urls import WebAddress, follow, parse_data, parse_web

# ----------------------------------------------------------------------------------------------------------------- URLs


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


def test_sizes_and_counts_are_checked_before_decoding():
    frames = "data:video/jpeg;base64," + "," * 100_000
    assert "100001 frames has more than the 64" in str(refusal(frames, "video"))
    # Not base64 at all: that it is too long is found first.
    assert refusal("data:image/png;base64," + "!" * 4000, max_bytes=1000).status == 413
    with pytest.raises(RefusedMediaError):
        parse_data("data:video/jpeg;base64," + ",".join(["YWJj"] * 5), "video", 1000, 4)
