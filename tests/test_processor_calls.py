"""transformers' call forms of the processor: every keyword has its effect, or is refused by name."""

import base64
import http.server
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import golden_audio_dir, golden_dir
from videollama2.errors import ConfigError, MediaError, PromptError
from videollama2.processing import VideoLlama2Processor
from videollama2.prompting import training_ids

MEDIA = golden_dir() / "media"
VIDEO, IMAGE = MEDIA / "portrait_25fps_57f.mp4", MEDIA / "wide.png"
MISTRAL, QWEN = "mistral-stc_connector-clip", "qwen2-stc_connector-clip"


@pytest.fixture(scope="module")
def processor():
    return VideoLlama2Processor.from_pretrained(golden_dir() / "models" / QWEN)


@pytest.fixture(scope="module")
def mistral():
    return VideoLlama2Processor.from_pretrained(golden_dir() / "models" / MISTRAL)


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(words):
    return {"type": "text", "text": words}


def tokenised(processor, *parts, **options):
    return processor.apply_chat_template([user(*parts, text("What?"))], tokenize=True, **options)


def frames(count):
    return [Image.new("RGB", (40, 30), (9 * number % 256, 90, 200)) for number in range(count)]


# ---------------------------------------------------------------------------------------------- conversations


def test_a_list_of_conversations_is_a_batch(processor):
    short = [user({"type": "image", "path": IMAGE}, text("What is it?"))]
    long = [user(text("A longer question about the clip, please."), {"type": "video", "video": VIDEO})]
    texts = processor.apply_chat_template([short, long], add_generation_prompt=True)
    assert texts == [processor.apply_chat_template(one, add_generation_prompt=True) for one in (short, long)]
    batch = processor.apply_chat_template([short, long], add_generation_prompt=True, tokenize=True)
    called = processor(text=texts, images=[IMAGE], videos=[VIDEO])
    assert batch.keys() == called.keys()
    assert all(torch.equal(batch[name], called[name]) for name in batch)
    assert batch["input_ids"].shape[0] == 2 and not batch["attention_mask"].all()


def test_return_dict_and_tensors(processor):
    conversation = [user({"type": "image", "image": Image.open(IMAGE)}, text("What?"))]
    batch = processor.apply_chat_template(conversation, tokenize=True)
    alone = processor.apply_chat_template(conversation, tokenize=True, return_dict=False)
    assert torch.equal(alone, batch["input_ids"])
    lists = processor.apply_chat_template(conversation, tokenize=True, return_tensors=None)
    assert lists["input_ids"] == batch["input_ids"].tolist() and torch.is_tensor(lists["pixel_values"])
    arrays = processor.apply_chat_template(conversation, tokenize=True, return_tensors="np")
    assert isinstance(arrays["input_ids"], np.ndarray) and isinstance(arrays["pixel_values"], np.ndarray)


@pytest.fixture
def served(tmp_path):
    """The picture behind an address of this machine."""
    data = IMAGE.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/wide.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_all_sources_of_a_part_give_one_picture(processor, served):
    data = IMAGE.read_bytes()
    encoded = base64.encodebytes(data).decode()  # with line breaks, as base64 often has them
    expected = tokenised(processor, {"type": "image", "path": IMAGE})["pixel_values"]
    for part in (
        {"type": "image", "path": str(IMAGE)},
        {"type": "image", "url": str(IMAGE)},
        {"type": "image", "url": IMAGE.as_uri()},
        {"type": "image", "url": f"{served}/wide.png"},
        {"type": "image", "base64": encoded},
        {"type": "image", "image": Image.open(IMAGE)},
        {"type": "image", "image": data, "text": None},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "image_url", "image_url": str(IMAGE)},
    ):
        assert torch.equal(tokenised(processor, part)["pixel_values"], expected), part


@pytest.mark.parametrize(
    ("part", "error", "rule"),
    [
        ({"type": "image"}, PromptError, "an? image part needs one source"),
        ({"type": "image", "path": "a", "url": "b"}, PromptError, "needs one source"),
        ({"type": "image", "base64": "%%%"}, MediaError, "base64"),
        ({"type": "image", "path": IMAGE, "start": 1}, PromptError, "image part has no option start"),
        ({"type": "video", "path": VIDEO, "speed": 1}, PromptError, "video part has no option speed"),
        ({"type": "image", "url": "http://127.0.0.1:9/x.png"}, MediaError, "cannot be fetched"),
    ],
)
def test_parts_that_cannot_be_read(processor, part, error, rule):
    with pytest.raises(error, match=rule):
        tokenised(processor, part)


def test_a_missing_address_is_told(processor, served):
    with pytest.raises(MediaError, match="cannot be fetched.*404"):
        tokenised(processor, {"type": "image", "url": f"{served}/none.png"})


def test_generation_prompt_and_continued_messages(mistral):
    asked = [user(text("What?"))]
    answered = [*asked, {"role": "assistant", "content": [text("A red")]}]
    for processor_text in (
        mistral.apply_chat_template(answered, continue_final_message=True),
        mistral.apply_chat_template(answered, continue_final_message="content"),
    ):
        assert processor_text.endswith("[/INST] A red")
    assert mistral.apply_chat_template(answered).endswith("A red</s>")
    with pytest.raises(ConfigError, match="do not go together"):
        mistral.apply_chat_template(answered, continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(PromptError, match="nothing to answer"):
        mistral.apply_chat_template(answered, add_generation_prompt=True)


@pytest.mark.parametrize("name", ["processor", "mistral"])
def test_the_mask_of_answers_is_that_of_training(name, request):
    """Also without ``{% generation %}`` in the template."""
    processor = request.getfixturevalue(name)
    words = ("What is it?", "A cat.", "And now?", "It sleeps.")
    system = {"role": "system", "content": "Be brief."}
    messages = [user({"type": "image", "path": IMAGE}, text(words[0])), {"role": "assistant", "content": words[1]}]
    messages += [user(text(words[2])), {"role": "assistant", "content": words[3]}]
    batch = processor.apply_chat_template(
        [[system, *messages], [*messages[:2]]], tokenize=True, return_assistant_tokens_mask=True
    )
    masked = batch["input_ids"][batch["assistant_masks"].bool()].tolist()
    records = [{"from": who, "value": value} for who, value in zip(("human", "gpt") * 2, words, strict=True)]
    records[0]["value"] = f"<image>\n{words[0]}"
    expected = []
    for turns in (records, records[:2]):
        _, labels = training_ids(turns, ["image"], processor.tokenizer)
        expected += [label for label in labels if label != -100]
    assert masked == expected
    right = processor.apply_chat_template(
        messages, tokenize=True, return_assistant_tokens_mask=True, processor_kwargs={"padding_side": "right"}
    )
    assert right["assistant_masks"].shape == right["input_ids"].shape


def test_templates_and_their_variables(processor):
    template = "{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    conversation = [user(text("What?"))]
    assert processor.apply_chat_template(conversation, chat_template=template, mood="calm ") == "calm What?"
    assert processor.apply_chat_template(conversation, tools=[{"name": "look"}]).endswith("What?<|im_end|>\n")


# ------------------------------------------------------------------------------------------- frames of a video


def frame_count(batch):
    return batch["pixel_values_videos"].shape[1]


def test_frames_are_chosen_as_asked(processor):
    part = {"type": "video", "path": VIDEO}
    default = processor.model_config.num_frames
    assert frame_count(tokenised(processor, part)) == default
    assert frame_count(tokenised(processor, part, num_frames=3)) == 3
    assert frame_count(tokenised(processor, part, processor_kwargs={"num_frames": 3})) == 3
    assert frame_count(tokenised(processor, part, processor_kwargs={"videos_kwargs": {"num_frames": 3}})) == 3
    assert frame_count(tokenised(processor, {**part, "num_frames": 5}, num_frames=3)) == 5, "the part knows better"
    # 57 frames at 25 per second are 2.28 s.
    assert frame_count(tokenised(processor, part, fps=4)) == 9
    assert frame_count(tokenised(processor, {**part, "fps": 4, "start": 1.0, "end": 2.0})) == 4
    bounds = tokenised(processor, {**part, "start": 1.0, "end": 2.0}, num_frames=4)
    direct = processor.load_video(VIDEO, start=1.0, end=2.0, num_frames=4)
    assert torch.equal(bounds["pixel_values_videos"][0], direct)


def test_the_call_takes_groups_of_options(processor):
    prompt = "<video>\nWhat?"
    flat = processor(text=prompt, videos=VIDEO, num_frames=3)
    grouped = processor(
        text=prompt, videos=VIDEO, videos_kwargs={"num_frames": 3}, common_kwargs={"return_tensors": "pt"}
    )
    assert torch.equal(flat["pixel_values_videos"], grouped["pixel_values_videos"])
    padded = processor(text="<image>\nWhat?", images=IMAGE, images_kwargs={"aspect_ratio": "pad"})
    assert torch.equal(padded["pixel_values"], processor.load_image(IMAGE, aspect_ratio="pad"))
    cut = processor(text="Hello there.", text_kwargs={"truncation": True, "max_length": 2}, audio=None)
    assert cut["input_ids"].shape == (1, 2)


def test_frames_that_come_decoded(processor):
    prompt = "<video>\nWhat?"
    clip = frames(12)
    every = processor(text=prompt, videos=[clip], do_sample_frames=False)
    assert frame_count(every) == 12
    assert (
        frame_count(processor(text=prompt, videos=[clip], do_sample_frames=True)) == processor.model_config.num_frames
    )
    # Twelve frames at four per second are three seconds.
    metadata = [{"fps": 4.0, "total_num_frames": 12}]
    assert frame_count(processor(text=prompt, videos=[clip], video_metadata=metadata, fps=2)) == 6
    bounded = processor(text=prompt, videos=[clip], video_metadata=metadata, start=1.0, end=2.0, num_frames=4)
    assert torch.equal(bounded["pixel_values_videos"][0], every["pixel_values_videos"][0, 4:8])


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"fps": 2, "num_frames": 4}, "exclude each other"),
        ({"do_sample_frames": False, "fps": 2}, "exclude each other"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"video_metadata": {"fps": 25}}, "a file has its own times"),
        ({"video_metadata": [{}, {}]}, r"2 entries for 1 video"),
        ({"frames_per_second": 2}, "no option frames_per_second"),
        ({"videos_kwargs": {"padding": True}}, "videos_kwargs has no option padding"),
        ({"size": {"height": 1, "width": 1}}, "size belongs to the checkpoint"),
        ({"do_resize": False}, "do_resize belongs to the checkpoint"),
        ({"return_metadata": True}, "return_metadata=True is not supported"),
        ({"padding": "widest"}, "padding must be"),
        ({"truncation": "only_second"}, "truncation must be"),
        ({"padding_side": "top"}, "padding_side must be"),
        ({"return_tensors": "tf"}, "return_tensors must be"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"return_offsets_mapping": True}, "return_offsets_mapping=True is not supported"),
        ({"stride": 3}, "stride=3 is not supported"),
        ({"padding": "max_length"}, "needs max_length"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(processor, options, rule):
    with pytest.raises(ConfigError, match=rule):
        processor(text="<video>\nWhat?", videos=VIDEO, **options)
    with pytest.raises(ConfigError, match=rule):
        tokenised(processor, {"type": "video", "path": VIDEO}, processor_kwargs=options)


def test_options_of_tokenising_without_it_are_refused(processor):
    for options in ({"num_frames": 3}, {"padding": False}, {"return_assistant_tokens_mask": True}):
        with pytest.raises(ConfigError, match="tokenize=True"):
            processor.apply_chat_template([user(text("What?"))], **options)


def test_values_that_ask_for_nothing_are_accepted(processor):
    plain = processor(text="<image>\nWhat?", images=IMAGE)
    own = processor.image_processor
    neutral = {
        "do_resize": True,
        "size": dict(own.size),
        "image_mean": tuple(own.image_mean),
        "device": "cpu",
        "data_format": "channels_first",
        "return_metadata": None,
        "verbose": True,
        "truncation": None,
        "max_length": None,
        "pad_to_multiple_of": None,
        "padding": "longest",
        "audio": None,
        "videos": None,
    }
    again = processor(text="<image>\nWhat?", images=IMAGE, **neutral)
    assert all(torch.equal(again[name], plain[name]) for name in plain)


# ----------------------------------------------------------------------------------------------------- sounds


def test_sounds_are_media_in_every_option():
    """Masks, types, cutting and the order of a turn know the placeholders of a sound too."""
    folder = golden_audio_dir()
    processor = VideoLlama2Processor.from_pretrained(folder / "models" / "qwen2-stc_connector_v35-siglip-beats")
    sound = {"type": "audio", "path": folder / "media" / "door_cut.wav"}
    answer = {"role": "assistant", "content": "A voice."}
    orders = [[user(*parts), answer] for parts in ((sound, text("What?")), (text("What?"), sound))]
    options = {"return_mm_token_type_ids": True}
    first, second = (
        processor.apply_chat_template(
            messages, tokenize=True, return_assistant_tokens_mask=True, processor_kwargs=options
        )
        for messages in orders
    )
    assert torch.equal(first["input_ids"], second["input_ids"])
    ids = first["input_ids"]
    assert torch.equal(first["mm_token_type_ids"] == 3, ids == processor.audio_token_id) and (ids > 0).any()
    spoken = processor.tokenizer.decode(ids[first["assistant_masks"].bool()])
    assert spoken.strip() == "A voice.<|im_end|>"
    with pytest.raises(PromptError, match="would cut a medium"):
        processor.apply_chat_template(orders[0], tokenize=True, truncation=True, max_length=300)
