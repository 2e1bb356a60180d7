"""What vLLM sees of a prompt: ids of the vocabulary, media at their places, the published text. Needs no vLLM."""

import pytest

from tests.conftest import ROOT, golden_dir
from videollama2.constants import MODAL_INDEX_MAP
from videollama2.engines.vllm import prompts
from videollama2.engines.vllm.prompts import Place
from videollama2.engines.vllm.sampling import sampling_fields
from videollama2.errors import ConfigError, PromptError
from videollama2.inference.sampling import SamplingOptions
from videollama2.inference.structure import Structure
from videollama2.media.kinds import TAGS
from videollama2.processing import VideoLlama2Processor
from videollama2.prompting.prompt import SAFETY_SYSTEM_PROMPT, Prompt, build_prompt
from videollama2.prompting.template import render_chat_template

MODELS = sorted(path for path in (golden_dir() / "models").iterdir() if (path / "config.json").is_file())
FOLDERS = [*MODELS, ROOT / "videollama2" / "assets" / "videollama2-tiny"]
TEXT = "Wörter, 两个字  and  <video> typed by a user\n"


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def processor(request: pytest.FixtureRequest) -> VideoLlama2Processor:
    return VideoLlama2Processor.from_pretrained(request.param)


def conversation(*parts: str | dict) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def expected(prompt: Prompt, processor: VideoLlama2Processor) -> list:
    kinds = {index: tag.strip("<>") for tag, index in MODAL_INDEX_MAP.items()}
    pieces: list = [[]]
    for token in prompt.token_ids(processor.tokenizer):
        if token in kinds:
            number = sum(isinstance(piece, Place) and piece.kind == kinds[token] for piece in pieces)
            pieces += [Place(kinds[token], number), []]
        else:
            pieces[-1].append(token)
    return pieces


def test_ids_obey_the_rule_of_vllm(processor: VideoLlama2Processor) -> None:
    """vLLM refuses negative ids and ids beyond both the tokenizer's largest and the vocabulary (validate_token_ids)."""
    vocabulary = processor.model_config.vocab_size
    ids = prompts.marked_ids([1, *MODAL_INDEX_MAP.values(), 2], vocabulary)
    largest = max(*processor.tokenizer.get_vocab().values(), vocabulary - 1)
    assert all(0 <= token <= largest for token in [*ids, prompts.filler_id(processor.tokenizer)])
    assert all(0 <= token < vocabulary for token in ids)


def test_no_text_produces_the_filler(processor: VideoLlama2Processor) -> None:
    tokenizer = processor.tokenizer
    text = "".join(map(chr, [*range(1, 0xD800, 7), 0xFF, 0x10FFFF]))
    assert prompts.filler_id(tokenizer) not in tokenizer(text, add_special_tokens=False).input_ids


def test_prompts_of_this_package_are_split_as_they_were_made(processor: VideoLlama2Processor) -> None:
    messages = conversation({"type": "video"}, TEXT, {"type": "image"}, {"type": "video"}, "And these?")
    prompt = processor.prompt(messages)
    vocabulary = processor.model_config.vocab_size
    ids = prompts.marked_ids(prompt.token_ids(processor.tokenizer), vocabulary)
    found = prompts.split_prompt(ids, {"video": 2, "image": 1}, processor.tokenizer, vocabulary)
    assert found == expected(prompt, processor)


def test_conversations_that_vllm_renders_give_the_same_pieces(processor: VideoLlama2Processor) -> None:
    """vLLM puts markers in front of a turn's text, renders the template and tokenises the whole."""
    tokenizer, vocabulary = processor.tokenizer, processor.model_config.vocab_size
    template = prompts.VllmChatProcessor(processor.image_processor, tokenizer, processor.model_config).chat_template
    flat = [{"role": "user", "content": f"{prompts.text_marker('video', 0)}\n{TEXT}What happens?"}]
    text = tokenizer.apply_chat_template(flat, chat_template=template, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = prompts.split_prompt(ids, {"video": 1}, tokenizer, vocabulary)
    prompt = processor.prompt(conversation({"type": "video"}, f"{TEXT}What happens?"))
    assert found == expected(prompt, processor)


def test_tags_count_where_a_caller_completes_a_text(processor: VideoLlama2Processor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer("[INST]<image> and <video>", add_special_tokens=False).input_ids
    counts = {"image": 1, "video": 1}
    pieces = prompts.split_prompt(ids, counts, tokenizer, processor.model_config.vocab_size)
    assert [piece for piece in pieces if isinstance(piece, Place)] == [("image", 0), ("video", 0)]


def test_places_and_media_must_agree(processor: VideoLlama2Processor) -> None:
    with pytest.raises(PromptError, match="places for 0 media of the kind video, but 1 are given"):
        prompts.split_prompt([1, 2, 3], {"video": 1}, processor.tokenizer, processor.model_config.vocab_size)


def rendered_by_vllm(messages: list[str], interleave: bool = True) -> tuple[str, str, dict[int, int]]:
    """A text with vLLM's markers, the wanted order, and the videos' sounds. A letter is a part: s, v, or a text.

    vLLM numbers the sounds of videos as it meets them and gives markers to parts in turn; those that are left are in
    front of the message (vllm.renderers.chat_utils).
    """
    text, wanted, sounds = "", "", {}
    heard = seen = 0
    for message in messages:
        markers, parts, words = {"s": [], "v": []}, [], []
        for part in message:
            words.append(part)
            if part == "v":
                markers["v"].append(prompts.text_marker("video", seen))
                sounds[seen] = heard
                words[-1] = f"(v{seen}s{heard})"
                seen += 1
            if part in "sv":
                markers["s"].append(prompts.text_marker("audio", heard))
                words[-1] = f"(s{heard})" if part == "s" else words[-1]
                heard += 1
        for part in message:
            parts += (
                [markers[part].pop(0) if interleave and part in markers else part]
                if interleave or part not in "sv"
                else []
            )
        text += "[" + "\n".join([*markers["s"], *markers["v"], *parts]) + "]"
        wanted += "[" + "\n".join(words) + "]"
    return text, wanted, sounds


@pytest.mark.parametrize(
    "messages",
    [["vx"], ["xv"], ["svx"], ["vsx"], ["xsvy"], ["vsv"], ["vv"], ["sx", "vy"], ["vx", "sy"], ["s", "svs", "x", "vs"]],
    ids="-".join,
)
def test_the_sound_of_a_video_is_right_behind_it(messages: list[str]) -> None:
    text, wanted, sounds = rendered_by_vllm(messages)
    found = prompts._at_text_markers(text, sounds)
    told = "".join(part if isinstance(part, str) else f"({part.kind[0]}{part.number})" for part in found)
    assert told.replace("(a", "(s").replace(")(s", "s") == wanted


@pytest.mark.parametrize("first", [[], [{"role": "system", "content": "Be brief."}]], ids=["none", "own"])
def test_the_published_system_text_is_part_of_the_template(first: list[dict]) -> None:
    folder = next(path for path in MODELS if path.name.startswith("mistral"))
    processor = prompts.VllmChatProcessor.from_pretrained(folder)
    messages = [*first, {"role": "user", "content": "Hello"}]
    text = render_chat_template(messages, processor.tokenizer, True, chat_template=processor.chat_template)
    assert text == build_prompt(messages, processor.tokenizer, "mistral").text
    assert (SAFETY_SYSTEM_PROMPT in text) == (not first)


def test_markers_cannot_be_guessed() -> None:
    markers = [prompts.text_marker(kind, 0) for kind in TAGS]
    assert len({*markers, *TAGS.values()}) == 2 * len(TAGS)
    assert all(len(marker) > 32 for marker in markers)
    assert len(set(prompts.id_markers(1000).values())) == len(TAGS)


def test_sampling_options_in_terms_of_vllm(processor: VideoLlama2Processor) -> None:
    options = SamplingOptions(max_new_tokens=9, min_new_tokens=20 - 12, top_k=5, stop="x", structure=None)
    fields = sampling_fields(options, 5, [2], processor.tokenizer)
    assert (fields["max_tokens"], fields["min_tokens"], fields["stop_token_ids"]) == (5, 5, [2])
    assert sampling_fields(SamplingOptions(ignore_eos=True), 5, [2], processor.tokenizer)["stop_token_ids"] == []
    assert sampling_fields(SamplingOptions(end_ids=[7]), 5, [2], processor.tokenizer)["stop_token_ids"] == [7]
    chosen = SamplingOptions(structure=Structure.choice(["a", "b"]))
    assert '"a" | "b"' in sampling_fields(chosen, 5, [2], processor.tokenizer)["grammar"]
    with pytest.raises(ConfigError, match="no_repeat_ngram_size"):
        sampling_fields(SamplingOptions(no_repeat_ngram_size=2), 5, [2], processor.tokenizer)
