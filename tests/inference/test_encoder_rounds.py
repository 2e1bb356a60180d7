"""Media that the encoder takes in several rounds: what goes on between two of them, and what each request gets."""

import pytest
import torch

from tests.conftest import golden_audio_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.errors import EngineError
from videollama2.inference.engine import Engine
from videollama2.inference.media import encoder

from .helpers import load

VISUAL, HEARING = "qwen2-stc_connector-clip", "qwen2-stc_connector_v35-siglip-beats"
SOUND_FRAMES = 64
TOKENS = 4


@pytest.fixture(scope="module", params=["video", "audio"])
def case(request):
    """A model, its processor, a function that makes the n-th medium, the encoder and the positions of a medium."""
    if request.param == "video":
        model, processor = load(VISUAL)
        size = model.config.vision_config.image_size
        tower, positions = model.model.vision_tower.embeddings, 4 * model.config.features_per_frame
        shape = (4, 3, size, size)
    else:
        model, processor = load_checkpoint(golden_audio_dir() / "models" / HEARING, dtype=torch.float32)
        audio = model.eval().config.audio_config
        tower, positions = model.model.audio_tower.patch_embedding, audio.tokens_of(SOUND_FRAMES)
        shape = (1, SOUND_FRAMES, audio.num_mel_bins)

    def medium(number):
        return request.param, torch.randn(shape, generator=torch.Generator().manual_seed(number))

    return model, processor, medium, tower, positions


@pytest.fixture
def start(case, monkeypatch):
    """A function that makes an engine whose rounds have room for so many media, and the list of its encoder's calls.

    A call is the sizes of its batch and the numbers of tokens that all answers have by then.
    """
    model, processor, _, tower, positions = case
    answers, calls = [], []

    def note(module, inputs, output):
        calls.append((len(output), [answer.channel.completion_tokens for answer in answers]))

    def make(media_per_round):
        monkeypatch.setattr(encoder, "POSITIONS_PER_ROUND_ON_CPU", media_per_round * positions)
        answers.clear()
        calls.clear()
        return Engine(model, processor, max_batch=6, max_length=512, background=False), answers, calls

    hook = tower.register_forward_hook(note)
    yield make
    hook.remove()


def ask(engine, media, tokens=TOKENS):
    return engine.submit("what moves", media, max_new_tokens=tokens, min_new_tokens=tokens)


def finish(engine, answers):
    while not all(answer.done for answer in answers):
        engine.step()


def tokens_of(answers):
    return [answer.result().token_ids for answer in answers]


def test_answers_go_on_between_the_media_of_others(case, start):
    medium = case[2]
    tokens = {}
    for media_per_round in (1, 100):
        engine, answers, calls = start(media_per_round)
        answers.append(ask(engine, [], tokens=40))
        engine.step()
        answers += [ask(engine, [medium(number)]) for number in range(3)]
        finish(engine, answers)
        tokens[media_per_round] = tokens_of(answers)
        engine.close()
        if media_per_round == 1:
            first, second, third = [lengths for _, lengths in calls]
            # The running answer gets tokens between two passes, and each new one its first before the next pass.
            assert first[0] < second[0] < third[0] < 40
            assert first[1:] == [0, 0, 0] and second[1] > 0 and second[2:] == [0, 0] and third[2] > 0 == third[3]
        else:
            assert len(calls) == 1
    assert tokens[1] == tokens[100]


def test_a_round_takes_as_many_media_as_fit(case, start):
    engine, answers, calls = start(2)
    answers += [ask(engine, [case[2](number)]) for number in range(5)]
    finish(engine, answers)
    single = calls[-1][0]
    assert [batch // single for batch, _ in calls] == [2, 2, 1]
    assert engine.media.cache.misses == 5 and engine.media.cache.hits == 0
    engine.close()


def test_what_is_encoded_does_not_wait_for_the_media_in_front_of_it(case, start):
    medium = case[2]
    tokens = {}
    for media_per_round in (1, 100):
        engine, answers, calls = start(media_per_round)
        # The first and the third have the same content, which is encoded once.
        answers += [ask(engine, [medium(0), medium(1), medium(0)]), ask(engine, []), ask(engine, [medium(1)])]
        finish(engine, answers)
        tokens[media_per_round] = tokens_of(answers)
        assert engine.media.cache.misses == 4
        engine.close()
        if media_per_round == 1:
            assert len(calls) == 2
            _, (front, text, last) = calls[1]
            assert front == last == 0 < text
        else:
            assert len(calls) == 1
    assert tokens[1] == tokens[100]


def test_faults_and_cancelled_requests_stay_alone(case, start):
    model, processor, medium, tower, _ = case
    engine, answers, calls = start(1)
    kind, values = medium(1)
    media = [medium(0), (kind, values + 1000), medium(2), medium(3)]

    def refuse(module, inputs):
        if inputs[0].max() > 20:
            raise RuntimeError("a fault")

    hook = tower.register_forward_pre_hook(refuse)
    answers += [ask(engine, [each]) for each in media]
    engine.step()
    assert len(calls) == 1 and engine.load["waiting"] == 3
    answers[2].cancel()
    finish(engine, answers)
    hook.remove()
    assert [answer.channel.completion_tokens for answer in answers] == [TOKENS, 0, 0, TOKENS]
    assert answers[2].outcome().finish_reason == "cancelled" and len(calls) == 2
    with pytest.raises(EngineError, match="a fault"):
        answers[1].result()
    assert engine._waiting.ahead._readings == {}
    engine.close()
