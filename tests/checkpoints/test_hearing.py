"""Models that hear: converted bit for bit, loaded in few bits with their ears as they are."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints.helpers import same
from tests.conftest import golden_audio_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.checkpoints.quantisation import quantization_config

from .test_convert import convert  # noqa: F401 - a fixture

NAME = "qwen2-stc_connector_v35-siglip-beats"


@pytest.fixture
def hearing(tmp_path):
    """A writable copy of a published checkpoint that hears, its encoders beside it."""
    for name in (f"models/{NAME}", "siglip-tiny", "beats-tiny"):
        shutil.copytree(golden_audio_dir() / name, tmp_path / name, copy_function=shutil.copyfile)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755)
    return tmp_path / "models" / NAME


def inputs(processor):
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What is heard?"}]}]
    sound = processor["audio"](golden_audio_dir() / "media" / "door_cut.wav")
    return processor.prepare([processor.prompt(messages)], [[sound]])


def last_logits(model, processor):
    with torch.no_grad():
        return model.eval()(**inputs(processor), logits_to_keep=1).logits


@pytest.mark.slow
@pytest.mark.parametrize("form", ["published", "native"])
def test_converting_keeps_every_bit_and_the_answer(hearing, tmp_path, convert, form):  # noqa: F811
    before = load_checkpoint(hearing, dtype=torch.float32)
    code, _, err = convert(hearing, tmp_path / "out", form)
    assert code == 0, err
    stored, written = (load_file(folder / "model.safetensors") for folder in (hearing, tmp_path / "out"))
    # The table of biases that all layers share is written once.
    copies = stored.keys() - written.keys()
    assert all("relative_attention_bias" in name for name in copies)
    assert same({name: stored[name] for name in written}, written)
    after = load_checkpoint(tmp_path / "out", dtype=torch.float32)
    assert after[0].config.audio_config.to_dict() == before[0].config.audio_config.to_dict()
    assert torch.equal(last_logits(*after), last_logits(*before))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:on a CPU, 4 bits need")
@pytest.mark.parametrize(("bits", "kind"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_few_bits_leave_the_ears_as_they_are(hearing, bits, kind):
    """The published code cannot load such a model: it quantises the position convolution's normalised weight."""
    pytest.importorskip("bitsandbytes", reason="optional extra 'quant'")
    exact, processor = load_checkpoint(hearing, dtype=torch.float32)
    config = quantization_config(bits, torch.float32)
    model, _ = load_checkpoint(hearing, device_map={"": "cpu"}, quantization_config=config)
    assert any(type(module).__name__ == kind for module in model.model.language_model.modules())
    for part in ("audio_tower", "mm_projector_a", "mm_projector", "vision_tower"):
        assert same(getattr(model.model, part).state_dict(), getattr(exact.model, part).state_dict()), part
    few, whole = last_logits(model, processor), last_logits(exact, processor)
    assert not torch.equal(few, whole)
    assert torch.nn.functional.cosine_similarity(few.flatten(), whole.flatten(), dim=0) > 0.9
