"""Media read from files: below the root alone, whatever links and names say."""

import os
import socket

import pytest

from tests.serve.helpers.media import write
from tests.serve.helpers.media_hosts import fetch, refusal
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.files import read_below
from videollama2.serve.untrusted_media.urls import parse_file


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
