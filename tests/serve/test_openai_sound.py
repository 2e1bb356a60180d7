"""Sound through the API, asked with the real ``openai`` client: the answers are those of the reference."""

import json

import pytest

openai = pytest.importorskip("openai")

from tests.conftest import golden_audio_dir  # noqa: E402
from tests.serve.helpers.chats import av_engine, live_chat, openai_client  # noqa: E402
from tests.serve.helpers.media import audio_part, data_url, film, image_part, picture, text_part, user, video_part  # noqa: E402

GOLDEN = golden_audio_dir()
MEDIA = GOLDEN / "media"
AUDIO_TOKENS = 1496
DESCRIBE, LOUDER = "Please describe the audio:", "Who plays the instrument louder?"
SEE_AND_HEAR = {"mm_processor_kwargs": {"use_audio_in_video": True}}


def reference(source, file, question):
    """The published code's answer."""
    for row in json.loads((GOLDEN / "end_to_end_audio.json").read_text()):
        if (row["input"], row["file"], row["question"]) == (source, file, question) and "siglip" in row["model"]:
            return row["answer"]
    raise AssertionError("no such row")


@pytest.fixture(scope="module")
def server():
    with live_chat(av_engine()) as (live, service):
        live.service = service
        yield live


@pytest.fixture(scope="module")
def client(server):
    with openai_client(server) as found:
        yield found


def url_part(name, mime):
    return {"type": "audio_url", "audio_url": {"url": data_url((MEDIA / name).read_bytes(), mime)}}


def ask(client, *parts, **options):
    extra = {"ignore_eos": True, **options.pop("extra", {})}
    return client.chat.completions.create(
        model="tiny", messages=[user(*parts)], max_tokens=24, temperature=0, extra_body=extra, **options
    )


def text_of(reply):
    return reply.choices[0].message.content.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speech_mono_22k.wav", "speech_stereo_44k.mp3"])
def test_a_sound_in_openais_form(client, name):
    part = audio_part((MEDIA / name).read_bytes(), name[-3:])
    reply = ask(client, part, text_part(DESCRIBE))
    assert text_of(reply) == reference("audio", name, DESCRIBE)
    assert reply.usage.prompt_tokens_details.audio_tokens == AUDIO_TOKENS < reply.usage.prompt_tokens
    assert text_of(ask(client, text_part(DESCRIBE), part)) == text_of(reply), "the order of clients plays no part"


@pytest.mark.slow
def test_a_sound_in_vllms_form(client):
    expected = reference("audio", "door_cut.wav", DESCRIBE)
    part = url_part("door_cut.wav", "audio/wav")
    assert text_of(ask(client, part, text_part(DESCRIBE))) == expected
    bare = {"type": "audio_url", "audio_url": part["audio_url"]["url"]}
    assert text_of(ask(client, bare, text_part(DESCRIBE))) == expected
    unknown = url_part("door_cut.wav", "application/octet-stream")
    assert text_of(ask(client, unknown, text_part(DESCRIBE))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("mime", ["video/mp4", "application/octet-stream"])
def test_a_video_that_is_only_heard(client, mime):
    reply = ask(client, url_part("duet_cut.mp4", mime), text_part(DESCRIBE))
    assert text_of(reply) == reference("audio_from_video", "duet_cut.mp4", DESCRIBE)


@pytest.mark.slow
def test_a_video_with_its_sound(client):
    content = (MEDIA / "duet_cut.mp4").read_bytes()
    heard = ask(client, video_part(content), text_part(LOUDER), extra=SEE_AND_HEAR)
    assert text_of(heard) == reference("audio_video", "duet_cut.mp4", LOUDER)
    assert heard.usage.prompt_tokens_details.audio_tokens == AUDIO_TOKENS
    in_part = ask(client, {**video_part(content), **SEE_AND_HEAR}, text_part(LOUDER))
    by_kind = ask(
        client,
        video_part(content),
        text_part(LOUDER),
        extra={"media_io_kwargs": {"video": SEE_AND_HEAR["mm_processor_kwargs"]}},
    )
    assert text_of(in_part) == text_of(by_kind) == text_of(heard)
    seen = ask(
        client,
        {**video_part(content), "mm_processor_kwargs": {"use_audio_in_video": False}},
        text_part(LOUDER),
        extra=SEE_AND_HEAR,
    )
    assert text_of(seen) == reference("video", "duet_cut.mp4", LOUDER), "the part's own word goes before the request's"
    assert seen.usage.prompt_tokens_details.audio_tokens == 0


@pytest.mark.slow
def test_a_silent_video_is_heard_as_silence(client):
    content = (MEDIA / "video_no_audio.mp4").read_bytes()
    heard = ask(client, video_part(content), text_part(LOUDER), extra=SEE_AND_HEAR)
    assert text_of(heard) == reference("audio_video", "video_no_audio.mp4", LOUDER)


@pytest.mark.slow
def test_bounds_cut_pictures_and_sound(client, server):
    path = MEDIA / "duet_cut.mp4"
    bounds = {"start": 0.5, "end": 2.0, "windows": "whole", "num_frames": 4}
    extra = {"mm_processor_kwargs": {**bounds, "use_audio_in_video": True}}
    heard = ask(client, video_part(path.read_bytes()), text_part(LOUDER), extra=extra)
    own = [user({"type": "video", "path": str(path), "use_audio": True, **bounds}, text_part(LOUDER))]
    expected = server.service.engine.submit(own, max_new_tokens=24, ignore_eos=True).result(60)
    assert text_of(heard) == expected.text.strip() and expected.audio_tokens == AUDIO_TOKENS
    part = audio_part((MEDIA / "speech_stereo_44k.mp3").read_bytes(), "mp3", mm_processor_kwargs={"channels": "mix"})
    mixed = [user({"type": "audio", "path": str(MEDIA / "speech_stereo_44k.mp3"), "channels": "mix"}, text_part("x"))]
    expected = server.service.engine.submit(mixed, max_new_tokens=24, ignore_eos=True).result(60)
    assert text_of(ask(client, part, text_part("x"))) == expected.text.strip()


def test_a_stream_counts_the_sound(client):
    part = audio_part((MEDIA / "door_cut.wav").read_bytes())
    chunks = list(ask(client, part, text_part(DESCRIBE), stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip()
    assert text == reference("audio", "door_cut.wav", DESCRIBE)
    assert chunks[-1].usage.prompt_tokens_details.audio_tokens == AUDIO_TOKENS


@pytest.mark.slow
def test_in_the_responses_api(client):
    sound = audio_part((MEDIA / "door_cut.wav").read_bytes())
    content = [sound, {"type": "input_text", "text": DESCRIBE}]
    reply = client.responses.create(
        model="tiny", input=[{"role": "user", "content": content}], max_output_tokens=24, temperature=0
    )
    assert reference("audio", "door_cut.wav", DESCRIBE).startswith(reply.output_text.strip()) and reply.output_text


def refusal(client, *parts, **options):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, *parts, text_part("x"), **options)
    return caught.value.body


def test_bad_sounds(client):
    text = refusal(client, audio_part(b"no sound but a text"))
    assert text["message"] == "the audio cannot be heard: it is damaged, or not of an accepted format"
    assert (text["code"], text["param"]) == ("invalid_media", "messages.0.content.0.input_audio.data")
    assert refusal(client, audio_part(b"x", "exe"))["param"] == "messages.0.content.0.input_audio.format"
    broken = {"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}
    assert refusal(client, broken)["message"] == "the data URL of a sound is not valid base64"
    url = url_part("door_cut.wav", "text/html")
    assert refusal(client, url)["message"] == "a data URL of type text/... is not a sound"
    still = audio_part((MEDIA / "video_no_audio.mp4").read_bytes(), "mp4")
    assert refusal(client, still)["message"] == "has no sound track"
    late = audio_part((MEDIA / "door_cut.wav").read_bytes(), mm_processor_kwargs={"start": 99})
    assert "there is no sound between 99 s and its end" in refusal(client, late)["message"]


@pytest.mark.slow
def test_a_model_that_cannot_hear_says_so():
    with (
        live_chat() as (server, _),
        openai_client(server) as client,
    ):
        told = refusal(client, audio_part((MEDIA / "door_cut.wav").read_bytes()))
        assert told["message"] == "this model has no audio encoder: it cannot hear a sound"
        assert (told["code"], told["param"]) == ("modality_not_supported", "messages.0.content.0.input_audio.data")
        assert refusal(client, video_part(film()), extra=SEE_AND_HEAR)["code"] == "modality_not_supported"
        assert text_of(ask(client, video_part(film()), text_part("x")))


@pytest.mark.slow
def test_a_model_that_cannot_see_says_so(tmp_path):
    from videollama2.inference.engine import Engine

    model, processor = hearing_only(tmp_path)
    engine = Engine(model, processor, max_batch=2, max_length=2048)
    with (
        live_chat(engine) as (server, _),
        openai_client(server) as client,
    ):
        for part, what in ((image_part(picture()), "an image"), (video_part(film()), "a video")):
            told = refusal(client, part)
            assert told["message"] == f"this model has no vision encoder: it cannot be shown {what}"
        heard = ask(client, audio_part((MEDIA / "door_cut.wav").read_bytes()), text_part("x"))
        assert heard.usage.prompt_tokens_details.audio_tokens == AUDIO_TOKENS


def hearing_only(folder):
    """A random model with ears alone."""
    import torch

    from tests.serve.helpers.chats import av_model
    from videollama2.checkpoints import load_checkpoint
    from videollama2.config import VideoLlama2Config
    from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

    both, processor = av_model()
    fields = both.config.to_dict()
    for name in ("vision_config", "mm_vision_tower"):
        fields.pop(name, None)
    torch.manual_seed(0)
    VideoLlama2ForConditionalGeneration(VideoLlama2Config(**fields)).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    model, processor = load_checkpoint(folder, dtype=torch.float32)
    return model.eval(), processor
