"""Chat completions about videos and images: the answers are those of ``videollama2 ask``."""

import base64
from pathlib import Path

import pytest

from tests.conftest import golden_dir
from tests.serve.helpers.chats import answer, ask, refused, tiny_engine
from tests.serve.helpers.media import data_url, demo, film, image_part, picture, text_part, user, video_part
from tests.serve.helpers.servers import PATIENCE_S
from videollama2.inference.request import Request

MOVING = Path(__file__).parents[1] / "media" / "cases"


MEDIA = golden_dir() / "media"


def at_home(question, media, **options):
    """The answer of ``videollama2 ask``: the same engine, over the file itself."""
    with tiny_engine(max_batch=1, background=False) as engine:
        return engine.submit_request(Request(question, media, max_new_tokens=24, **options)).result(PATIENCE_S).text


# -------------------------------------------------------------------------------------------------------------- answers


VIDEOS = [
    "portrait_25fps_57f.mp4",
    "clip_24fps_240f.webm",
    "landscape_30fps_90f.mp4",
    "short_10fps_5f.mp4",
    "one_frame.mp4",
    "anim_20f.gif",
]


IMAGES = ["wide.png", "tall.jpg", "gray.png", "rgba.png", "anim_20f.gif"]


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_has_the_answer_it_has_at_home(chat, name):
    path = MEDIA / name
    part = video_part(path.read_bytes(), "image/gif" if name.endswith("gif") else "video/mp4")
    question = "How many shapes are there and what do they do?"
    assert answer(chat, part, text_part(question)) == at_home(question, [("video", path)])


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_the_answer_it_has_at_home(chat, name):
    path = MEDIA / name
    question = "Describe the picture."
    assert answer(chat, image_part(path.read_bytes()), text_part(question)) == at_home(question, [("image", path)])


def test_the_engine_gets_the_same_pixels(chat):
    """Not only the same answer: the visual tokens of the file itself are found in the cache."""
    cache = chat.service.engine.media.cache
    for kind, path in (("video", MEDIA / "landscape_30fps_90f.mp4"), ("image", MEDIA / "tall.jpg")):
        part = (video_part if kind == "video" else image_part)(path.read_bytes())
        answer(chat, part, text_part("what is it?"))
        hits = cache.hits
        own = Request("what is it?", [(kind, path)], max_new_tokens=1)
        chat.service.engine.submit_request(own).result(PATIENCE_S)
        assert cache.hits == hits + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 4},
        {"start": 1.0},
        {"end": 0.5},
        {"num_frames": 3, "start": 0.5, "end": 1.5},
        {"num_frames": 5, "sampling": "time"},
    ],
)
def test_frames_and_clip(chat, options):
    path = MEDIA / "landscape_30fps_90f.mp4"
    expected = at_home("What moves?", [{"type": "video", "path": path, **options}])
    data = path.read_bytes()
    by_request = ask(chat, video_part(data), text_part("What moves?"), mm_processor_kwargs=options).json()
    by_part = ask(chat, video_part(data, **options), text_part("What moves?"), mm_processor_kwargs={"num_frames": 9})
    assert by_request["choices"][0]["message"]["content"] == expected
    if "num_frames" in options:
        assert by_part.json()["choices"][0]["message"]["content"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("mime", ["video/mp4", "own", "application/octet-stream"])
@pytest.mark.parametrize("name", ["anim.webp", "anim_apng.png", "anim.avif"])
def test_a_moving_picture_is_a_video(chat, name, mime):
    path = MOVING / name
    mime = f"image/{path.suffix[1:]}" if mime == "own" else mime
    part = video_part(path.read_bytes(), mime)
    assert answer(chat, part, text_part("What moves?")) == at_home("What moves?", [("video", path)])


def test_a_folder_of_frames(chat):
    frames = sorted((MEDIA / "frames_dir").iterdir(), key=lambda path: (len(path.name), path.name))
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(path.read_bytes()).decode() for path in frames)
    part = {"type": "video_url", "video_url": {"url": url}}
    assert answer(chat, part, text_part("What moves?")) == at_home("What moves?", [("video", MEDIA / "frames_dir")])


def test_several_media_and_turns(chat):
    video, image = demo("moving_shapes.mp4"), demo("shapes.png")
    first = [video_part(video.read_bytes()), image_part(image.read_bytes()), text_part("Which came first?")]
    turns = [
        {"role": "system", "content": "Answer in one word."},
        user(*first),
        {"role": "assistant", "content": "red"},
        user(image_part(image.read_bytes()), text_part("And here?")),
    ]
    reply = ask(chat, messages=turns).json()
    own = [
        turns[0],
        user({"type": "video", "path": video}, {"type": "image", "path": image}, first[-1]),
        turns[2],
        user({"type": "image", "path": image}, text_part("And here?")),
    ]
    assert reply["choices"][0]["message"]["content"] == at_home(own, [])


def test_addresses_as_texts_and_base64_in_lines(chat):
    data = demo("shapes.png").read_bytes()
    expected = answer(chat, image_part(data), text_part("What is it?"))
    url = data_url(data, "image/png")
    assert answer(chat, {"type": "image_url", "image_url": url}, text_part("What is it?")) == expected
    head, text = url.split(",")
    lines = head + "," + "".join(text[at : at + 76] + "\r\n" for at in range(0, len(text), 76))
    assert answer(chat, {"type": "image_url", "image_url": {"url": lines}}, text_part("What is it?")) == expected
    error = refused(chat, text_part("x"), {"type": "image_url", "image_url": "data:image/png;base64,AAAA"})
    assert error["param"] == "messages.0.content.1.image_url"


TWO_FPS = {"video": {"fps": 2}}


def test_frames_by_options_of_all_kinds(chat):
    path = MEDIA / "landscape_30fps_90f.mp4"
    part, question = video_part(path.read_bytes()), text_part("What moves?")
    by_name = answer(chat, part, question, mm_processor_kwargs={"num_frames": 3})
    assert answer(chat, part, question, media_io_kwargs={"video": {"num_frames": 3}}) == by_name
    by_rate = ask(chat, part, question, mm_processor_kwargs={"fps": 1})
    assert by_rate.status_code == 200, by_rate.text
    assert (
        answer(chat, {**part, "mm_processor_kwargs": {"num_frames": 3}}, question, media_io_kwargs=TWO_FPS) == by_name
    )
    six = ask(chat, part, question, mm_processor_kwargs={"num_frames": 6}).json()
    twice = ask(chat, part, question, media_io_kwargs=TWO_FPS).json()
    assert twice["choices"] == six["choices"], "3 s at 2 frames per second"
    assert twice["usage"]["prompt_tokens"] == six["usage"]["prompt_tokens"]


# --------------------------------------------------------------------------------------------------------------- errors


def test_the_text_may_stand_before_its_medium(chat):
    """Most clients send the text first; the model was trained on the tag first."""
    question = text_part("What color is the shape?")
    for medium in (image_part(picture()), video_part(film())):
        replies = [ask(chat, *parts).json() for parts in ((question, medium), (medium, question))]
        assert replies[0]["choices"] == replies[1]["choices"]
        assert replies[0]["usage"]["prompt_tokens"] == replies[1]["usage"]["prompt_tokens"]
