"""One test per class of vulnerability that servers of this kind have had, end to end: addresses and files."""

from functools import partial

import pytest

from tests.serve.helpers import chats
from tests.serve.helpers.chats import turned_away
from tests.serve.helpers.media import image_part, text_part, url_part, video_part
from tests.serve.helpers.media_hosts import ok, web

ask = partial(chats.ask, max_tokens=4)


@pytest.fixture(scope="module")
def trap():
    """A server that nobody may reach; it counts who does."""
    with web({"/secret.png": ok(b"secret")}) as found:
        yield found


# ----------------------------------------------------------------------------------------------- requests of the server


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "①②⑦.⓪.⓪.①",
        "127.0.0.1.",
        "localhost.",
        "LOCALHOST",
        "user@127.0.0.1",
        "127.0.0.1%23.rebind.example",
        "rebind.example@127.0.0.1",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
def test_no_request_reaches_this_machine(guarded_api, trap, host, kind):
    turned_away(guarded_api, url_part(f"http://{host}:{trap.port}/secret.png", kind))
    assert trap.visits == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/",
        "http://metadata.google.internal/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://169.254.43518/",
    ],
)
def test_credentials_of_the_cloud_stay_there(guarded_api, url):
    turned_away(guarded_api, url_part(url))


def test_an_allowed_name_that_is_private_is_no_way_in(guarded_api):
    """localhost is on the list, without a port: then it must be public, which it is not."""
    assert turned_away(guarded_api, url_part("http://localhost/x.png"))["code"] == "media_not_allowed"


def test_an_allowed_name_that_turns_private_is_no_way_in(guarded_api):
    """DNS rebinding: public when it was allowed, private when it is asked."""

    async def rebound(host, port):
        return ["127.0.0.1"]

    resolve, guarded_api.service.media.fetcher._resolve = guarded_api.service.media.fetcher._resolve, rebound
    try:
        assert turned_away(guarded_api, url_part("http://rebind.example/x.png"))["code"] == "media_not_allowed"
    finally:
        guarded_api.service.media.fetcher._resolve = resolve


@pytest.mark.parametrize(
    "url",
    [
        "http://rebind.example\\@127.0.0.1/x",
        "http://rebind.example#@127.0.0.1/",
        "http://127.0.0.1\\.rebind.example/",
        "http://127.0.0.1:80\\@rebind.example:80/",
        "http:\\\\127.0.0.1\\x",
        "http://rebind.example\t@127.0.0.1/",
        "http://rebind.example:80@127.0.0.1/",
        "http://[rebind.example]/",
        "http://rebind.example\u2028/",
    ],
)
def test_parsers_that_read_a_url_differently_have_nothing_to_differ_over(guarded_api, url):
    """Characters that one parser takes for the end of a host and another does not are refused."""
    error = turned_away(guarded_api, url_part(url))
    assert error["code"] in ("invalid_media_url", "media_not_allowed", "media_fetch_failed")


def test_the_address_of_a_refused_url_is_not_repeated(guarded_api, trap):
    """No open redirect, no reflected address, no port scanner: all that is off the list sounds the same."""
    messages = {
        turned_away(guarded_api, url_part(url))["message"]
        for url in (f"http://127.0.0.1:{trap.port}/", "http://127.0.0.1:1/", "http://no-such-host.example/")
    }
    assert len(messages) == 1


# ---------------------------------------------------------------------------------------------------------- local files


def test_files_of_the_media_folder_can_be_asked_about(guarded_api, media_root):
    assert ask(guarded_api, url_part(f"file://{media_root}/inside.png"), text_part("what?")).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "file://{root}/../outside.png",
        "file://{root}/%2e%2e/outside.png",
        "file://{root}/link.png",
        "file://{parent}/outside.png",
        "file:///etc/passwd",
        "file:///proc/self/environ",
        "file:///dev/zero",
        "file://localhost/etc/passwd",
        "{parent}/outside.png",
        "/etc/passwd",
        "outside.png",
        "file:outside.png",
        "file://{root}",
        "concat:{parent}/outside.png",
        "subfile,,start,0,end,9,,:{parent}/outside.png",
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_no_other_file_can(guarded_api, media_root, url, kind):
    turned_away(guarded_api, url_part(url.format(root=media_root, parent=media_root.parent), kind))


def test_base64_that_is_none_is_never_taken_for_a_path(guarded_api, media_root):
    """The published worker opened whatever it could not decode."""
    for url in (f"data:image/png;base64,{media_root.parent}/outside.png", "data:image/png;base64,http://127.0.0.1/"):
        turned_away(guarded_api, url_part(url))


def test_a_playlist_opens_no_other_file(guarded_api, media_root):
    """Containers that name other files make a decoder open them."""
    target = media_root.parent / "outside.png"
    lists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{target}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{target}'\n",
        f"<?xml version='1.0'?><svg><image href='file://{target}'/></svg>",
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    ]
    for text in lists:
        turned_away(guarded_api, video_part(text.encode()))
        turned_away(guarded_api, image_part(text.encode()))
