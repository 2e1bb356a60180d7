"""Flags, keys and limits."""

import argparse

import pytest

from videollama2.errors import ConfigError
from videollama2.flags import address
from videollama2.serve import controller, model_worker
from videollama2.serve.settings import (
    MediaPolicy,
    Security,
    add_media_flags,
    add_security_flags,
    is_loopback,
    read_media_policy,
    read_security,
)


def security(*flags):
    parser = argparse.ArgumentParser()
    add_security_flags(parser, worker_flags=True, registry=True)
    return read_security(parser.parse_args(flags))


def media(*flags):
    parser = argparse.ArgumentParser()
    add_media_flags(parser)
    return read_media_policy(parser.parse_args(flags))


def test_nothing_is_asked_for_by_default():
    assert security() == Security()
    assert Security().is_client(None) and Security().is_worker(None)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# of the team\nalpha\n\n  beta  \n")
    assert security("--api-key-file", str(file)).api_keys == ("alpha", "beta")
    monkeypatch.setenv("VIDEOLLAMA2_API_KEY", "gamma\ndelta")
    monkeypatch.setenv("VIDEOLLAMA2_WORKER_TOKEN", "secret")
    found = security()
    assert found.api_keys == ("gamma", "delta") and found.worker_token == "secret"
    assert security("--api-key-file", str(file)).api_keys == ("alpha", "beta"), "the file goes first"


def test_keys_are_not_shown():
    text = repr(Security(api_keys=("alpha",), worker_token="secret"))
    assert "alpha" not in text and "secret" not in text


@pytest.mark.parametrize("content", ["", "# nothing\n", "two words\n", "caf\u00e9\n", "tab\there\n"])
def test_a_file_without_a_usable_key_is_refused(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="key"):
        security("--api-key-file", str(file))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        security("--api-key-file", str(tmp_path / "none"))


def test_two_worker_tokens_are_refused(tmp_path):
    file = tmp_path / "token"
    file.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="one worker token"):
        security("--worker-token-file", str(file))


@pytest.mark.parametrize(
    ("bearer", "is_client", "is_worker"),
    [
        ("alpha", True, False),
        ("beta", True, False),
        ("secret", True, True),
        ("", False, False),
        (None, False, False),
        ("alph", False, False),
        ("alphaa", False, False),
        ("\udcff", False, False),
    ],
)
def test_who_may_do_what(bearer, is_client, is_worker):
    found = Security(api_keys=("alpha", "beta"), worker_token="secret")
    assert (found.is_client(bearer), found.is_worker(bearer)) == (is_client, is_worker)


def test_without_a_worker_token_a_key_is_still_needed_to_register():
    found = Security(api_keys=("alpha",))
    assert found.is_worker("alpha") and not found.is_worker(None)
    assert found.credential == "alpha" and Security(("alpha",), "secret").credential == "secret"


@pytest.mark.parametrize("parser", [controller.build_parser(), model_worker.build_parser()])
def test_no_flag_takes_a_key_itself(parser):
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert not flags & {"--api-key", "--api-keys", "--worker-token", "--token"}
    assert {"--api-key-file", "--worker-token-file"} <= flags


@pytest.mark.parametrize("entry", ["10.0.0.0/99", "a b", "host:80", "user@host", ""])
def test_a_bad_worker_network_is_refused(entry):
    with pytest.raises(ConfigError, match="allowed-workers"):
        security("--allowed-workers", entry)


def test_worker_networks():
    assert security("--allowed-workers", "10.0.0.0/8", "--allowed-workers", "gpu1").allowed_workers == (
        "10.0.0.0/8",
        "gpu1",
    )


def test_a_bad_origin_is_refused():
    with pytest.raises(ConfigError, match="cors-origin"):
        security("--cors-origin", "example.com")


def test_media_limits(tmp_path):
    assert media() == MediaPolicy()
    found = media(
        "--allowed-media-hosts",
        "CDN.example.com",
        "--media-root",
        str(tmp_path),
        "--max-media-mb",
        "3",
        "--max-frames",
        "8",
        "--decode-timeout",
        "2.5",
    )
    assert found.allowed_hosts == {"cdn.example.com"} and found.media_root == tmp_path.resolve()
    assert found.max_bytes == 3 << 20 and found.max_frames == 8 and found.decode_timeout_s == 2.5
    with pytest.raises(ConfigError, match="media-root"):
        media("--media-root", str(tmp_path / "none"))
    for host in ("*", "http://a", "a b"):
        with pytest.raises(ConfigError, match="allowed-media-hosts"):
            media("--allowed-media-hosts", host)


@pytest.mark.parametrize(
    "text",
    ["localhost:10000", "ftp://a", "http://", "http://a/b", "http://a?b", "http://u@a", "http://a:99999", "http://a:x"],
)
def test_a_bad_address_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        address(text)


def test_addresses():
    assert address("http://localhost:10000/") == "http://localhost:10000"
    assert address("https://[::1]:5") == "https://[::1]:5"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected
