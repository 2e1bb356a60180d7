"""transformers' Auto classes open published and own folders after ``import videollama2``, in whatever order."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, AutoVideoProcessor, pipeline

from tests.conftest import ROOT, golden_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.checkpoints.files import TINY_FOLDER
from videollama2.errors import ConfigError
from videollama2.processing import VideoLlama2VideoProcessor

PATH = golden_dir() / "models" / "qwen2-stc_connector_v35-siglip"

CHECK = f"""
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
config = AutoConfig.from_pretrained({str(PATH)!r})
assert "VideoLlama2ForConditionalGeneration" in str(AutoModelForImageTextToText._model_mapping[type(config)])
assert type(config).__name__ == "VideoLlama2Config", config
assert config.vision_config.model_type == "siglip_vision_model"
"""


LOOKED_FOR = "from importlib.util import find_spec\nassert find_spec('transformers')\n"


ORDERS = {
    "package": "import videollama2",
    "transformers first": "import transformers, videollama2",
    "a module after transformers": "import transformers, videollama2.config",
    "looked for before": LOOKED_FOR + "import videollama2",
    "looked for after": "import videollama2\n" + LOOKED_FOR + LOOKED_FOR,
    **{m: f"import videollama2.{m}" for m in ("processing", "config", "model.modeling", "prompting", "inference.api")},
    # The import after one that fails is the outermost again.
    "after one that failed": (
        "import sys, videollama2\n"
        "sys.modules['PIL'] = None\n"
        "try:\n    import videollama2.media.image\n"
        "except ImportError:\n    del sys.modules['PIL']\n"
        "assert 'PIL' not in sys.modules\n"
    ),
}

WATCHED = """
import gc, sys, videollama2
collected = []
gc.callbacks.append(lambda phase, info: collected.append(phase))
import videollama2.config
assert not [f for f in sys.meta_path if type(f).__module__.startswith('videollama2')]
assert gc.isenabled() and collected.count('start') < 5, collected  # without the pause: hundreds
"""

NOISY = "import videollama2.checkpoints, bitsandbytes"
"""What would say something of a kernel that is not installed."""

PROGRAMS = {**{name: f"{code}\n{CHECK}" for name, code in ORDERS.items()}, "watched": WATCHED, "noisy": NOISY}

IN_FORKS = """
import gc, json, os, sys, traceback
# What transformers imports, but nothing of transformers or of this package, nor what the programs look at.
import accelerate, accelerate.utils, huggingface_hub, jinja2, safetensors.torch, tokenizers, torch._dynamo, yaml
import torch.distributed.fsdp, torch.distributed.tensor
assert not {"PIL", "transformers", "videollama2"} & set(sys.modules)
gc.collect()
gc.freeze()
for name, code in json.load(sys.stdin).items():
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.wait()[1]), sep="\t", flush=True)
"""


@pytest.fixture(scope="module")
def ended():
    """What became of each program: its exit code, and what all of them wrote to the standard error."""
    asked = json.dumps(PROGRAMS)
    done = subprocess.run([sys.executable, "-c", IN_FORKS], input=asked, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t") for line in done.stdout.splitlines()), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_import_alone_registers_in_whatever_order(ended, order):
    codes, errors = ended
    assert codes[order] == "0", errors


@pytest.mark.slow
def test_nothing_watches_imports_once_registered_and_garbage_is_collected_again(ended):
    codes, errors = ended
    assert codes["watched"] == "0", errors


@pytest.mark.slow
def test_imports_say_nothing(ended):
    codes, errors = ended
    if not find_spec("bitsandbytes"):
        pytest.skip("the package bitsandbytes is not installed")
    assert (codes["noisy"], errors) == ("0", "")


def test_import_is_light():
    code = "import videollama2, sys; assert not {'torch', 'transformers', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_folders_open_through_transformers(tmp_path):
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    import videollama2  # noqa: F401

    processor = AutoProcessor.from_pretrained(PATH)
    model = AutoModelForImageTextToText.from_pretrained(PATH)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "videollama2"
    again, reopened = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    video = golden_dir() / "media" / "portrait_25fps_57f.mp4"
    prompt = processor.prompt([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}])
    inputs, inputs_again = processor(text=prompt.text, videos=video), reopened(text=prompt.text, videos=video)
    assert torch.equal(inputs["input_ids"], inputs_again["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, again(**inputs_again).logits, rtol=0, atol=0)
    counts = processor._get_num_multimodal_tokens(image_sizes=[(100, 50)], video_sizes=[(4, 64, 64)])
    assert (inputs["input_ids"] == processor.video_token_id).sum() == counts.num_video_tokens[0]


def test_processor_refuses_unequal_tags_and_media():
    from videollama2.errors import PromptError
    from videollama2.processing import VideoLlama2Processor

    processor = VideoLlama2Processor.from_pretrained(PATH)
    image = golden_dir() / "media" / "wide.png"
    with pytest.raises(PromptError, match="1 <image>.*0 are given"):
        processor(text="<image>\nWhat?")
    with pytest.raises(PromptError, match="0 <image>.*1 are given"):
        processor(text="What?", images=image)
    with pytest.raises(PromptError, match="text is needed"):
        processor(images=image)
    with pytest.raises(KeyError, match="'video' and 'image' and 'audio'"):
        processor["smell"]
    with pytest.raises(PromptError, match="no audio encoder"):
        processor["audio"]("song.wav")


def test_strict_loading_is_the_default_in_transformers_too(tmp_path):
    """AutoModel would only log missing weights."""
    import shutil

    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText

    import videollama2  # noqa: F401
    from videollama2.errors import CheckpointError

    model = AutoModelForImageTextToText.from_pretrained(PATH)
    model.save_pretrained(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors.pop("model.mm_projector.readout.2.weight")
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"mm_projector\.readout\.2\.weight"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize("name", ["mixtral-stc_connector-clip", "qwen2-stc_connector-clip"])
def test_the_model_without_its_head_opens(golden, tmp_path, name):
    full, _ = load_checkpoint(golden / "models" / name, dtype=torch.float32)
    inner = AutoModel.from_pretrained(golden / "models" / name, dtype=torch.float32)
    expected = full.model.state_dict()
    assert type(inner).__name__ == "VideoLlama2Model"
    for model in (inner, _saved_and_opened(inner, tmp_path)):
        weights = model.state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as saved:
        published = golden / "models" / name / "model.safetensors"
        with safe_open(published, framework="pt") as stored:
            assert set(saved.keys()) == set(stored.keys()) - {"lm_head.weight"}


def _saved_and_opened(model, folder):
    model.save_pretrained(folder)
    return AutoModel.from_pretrained(folder, dtype=torch.float32)


def test_videos_are_read_as_by_the_whole_processor():
    clip, options = golden_dir() / "media" / "portrait_25fps_57f.mp4", {"num_frames": 4, "end": 1.0}
    reader, whole = VideoLlama2VideoProcessor.from_pretrained(TINY_FOLDER), AutoProcessor.from_pretrained(TINY_FOLDER)
    first, second = reader([str(clip), str(clip)], **options)["pixel_values_videos"]
    assert torch.equal(first, whole["video"](str(clip), **options)) and torch.equal(first, second)
    with pytest.raises(ConfigError):
        reader(str(clip), frobnicate=1)


def test_the_auto_class_for_videos():
    pytest.importorskip("torchvision")
    assert isinstance(AutoVideoProcessor.from_pretrained(TINY_FOLDER), VideoLlama2VideoProcessor)


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines_answer(task, tmp_path, monkeypatch):
    # transformers 5.23 asks any-to-any models with eyes for torchvision, which this processor does not use.
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda pipe, backends: None)
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    parts = [{"type": "image", "image": str(tmp_path / "red.png")}, {"type": "text", "text": "What colour is it?"}]
    asked = pipeline(task, model=str(TINY_FOLDER), device="cpu")
    (result,) = asked(text=[{"role": "user", "content": parts}], max_new_tokens=4, return_full_text=False)
    assert "red" in result["generated_text"]


@pytest.mark.slow
@pytest.mark.parametrize("row", sorted(path.name for path in (golden_dir() / "models").iterdir() if path.is_dir()))
def test_a_model_that_was_never_loaded_is_saved_under_published_names(tmp_path, row):
    """As training does that starts from separate parts: nothing has recorded which conversion loaded it."""
    loaded, _ = load_checkpoint(golden_dir() / "models" / row, dtype=torch.float32)
    made = type(loaded)(loaded.config)
    made.load_state_dict(loaded.state_dict())
    for model, name in ((loaded, "loaded"), (made, "made")):
        model.save_pretrained(tmp_path / name)
    loaded, made = (load_file(tmp_path / name / "model.safetensors") for name in ("loaded", "made"))
    assert loaded.keys() == made.keys()
    assert all(torch.equal(loaded[name], made[name]) for name in made)
    published = load_file(golden_dir() / "models" / row / "model.safetensors")
    assert published.keys() <= made.keys() | {
        name for name in published if "post_layernorm" in name or ".head." in name
    }
