"""What a model worker is told by its flags: names, addresses and speed."""

import argparse

import pytest

from videollama2.engines.vllm.engine import check_flags
from videollama2.errors import ConfigError
from videollama2.inference.answer import Result, Timings
from videollama2.serve.model_worker import build_parser, measure_speed, open_own_engine, own_address
from videollama2.serve.worker.flags import model_name_of


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("videollama2-tiny", "videollama2-tiny"),
        ("DAMO-NLP-SG/VideoLLaMA2-7B", "VideoLLaMA2-7B"),
        ("/models/mine/", "mine"),
        ("runs/mine/checkpoint-100", "mine_checkpoint-100"),
        ("checkpoint-5", "checkpoint-5"),
    ],
)
def test_published_names_of_models(path, name):
    assert model_name_of(path) == name


def test_published_flags():
    args = build_parser().parse_args(
        [
            "--host",
            "0.0.0.0",
            "--controller-address",
            "http://localhost:10000",
            "--port",
            "40000",
            "--worker-address",
            "http://localhost:40000",
            "--model-path",
            "x",
            "--model-name",
            "y",
            "--limit-model-concurrency",
            "5",
            "--stream-interval",
            "2",
            "--no-register",
        ]
    )
    assert args.controller == "http://localhost:10000" and args.worker == "http://localhost:40000"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "http://127.0.0.1:40000"),
        (["--host", "10.0.0.5"], "http://10.0.0.5:40000"),
        (["--host", "::1"], "http://[::1]:40000"),
        (["--host", "0.0.0.0"], "http://localhost:40000"),
        (["--worker", "http://gpu1:5"], "http://gpu1:5"),
    ],
)
def test_where_a_worker_is_reached(flags, expected):
    assert own_address(build_parser().parse_args(flags)) == expected


def test_a_worker_must_know_where_it_is_reached():
    args = build_parser().parse_args(["--host", "0.0.0.0", "--controller", "http://head:10000"])
    with pytest.raises(ConfigError, match="--worker is needed"):
        own_address(args)


def test_speed_is_measured(tiny_engine):
    assert 0.1 < measure_speed(tiny_engine) < 1e6


def test_the_best_speed_that_was_seen_counts(tiny_service):
    def answer(tokens, first, total):
        tiny_service._watch_speed(Result("x", "stop", token_ids=(1,) * tokens, timings=Timings(0, 0, first, total)))
        return tiny_service.speed

    before = tiny_service.speed
    try:
        tiny_service.speed = 0.5  # measured while others were loading
        assert answer(2, 1.0, 1.1) == 0.5, "too short to tell"
        assert answer(33, 1.0, 3.0) == 16
        assert answer(33, 1.0, 9.0) == 16, "in company an answer is slower, the worker is not"
        tiny_service.is_speed_fixed = True
        assert answer(33, 1.0, 2.0) == 16, "the operator knows better"
    finally:
        tiny_service.speed, tiny_service.is_speed_fixed = before, False


def test_help_names_every_flag_once():
    flags = [flag for action in build_parser()._actions for flag in action.option_strings]
    assert len(flags) == len(set(flags)) and isinstance(build_parser(), argparse.ArgumentParser)


def test_packing_reaches_the_engine_which_refuses_small_weights():
    args = build_parser().parse_args(["--model-path", "videollama2-tiny", "--device", "cpu", "--pack-weights"])
    with pytest.raises(ConfigError, match="packed weights need a float32 decoder on a CPU, with layers of at least"):
        open_own_engine(args)


def test_not_packing_reaches_the_engine_and_no_other(monkeypatch):
    seen = []
    monkeypatch.setattr("videollama2.inference.engine.pack_weights", lambda model, wanted: seen.append(wanted))
    for flags in ([], ["--no-pack-weights"]):
        args = build_parser().parse_args(["--model-path", "videollama2-tiny", *flags])
        open_own_engine(args).close()
        if flags:
            with pytest.raises(ConfigError, match="--no-pack-weights is for the own engine"):
                check_flags(args)
        else:
            check_flags(args)
    assert seen == [None, False], "by default, the machine decides"
