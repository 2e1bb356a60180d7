"""Registers the model with transformers' Auto classes and its weight names with transformers' loader.

Importing this module is enough, and importing it again costs nothing. Afterwards ``AutoConfig``, ``AutoProcessor``,
``AutoModel``, ``AutoModelForImageTextToText`` and ``AutoModelForMultimodalLM`` open published and own checkpoints, and
so do the pipelines ``image-text-to-text`` and ``any-to-any``. For the latter, and for ``AutoVideoProcessor``,
transformers wants torchvision installed, although nothing here uses it.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.utils.import_utils import is_torchvision_available

from videollama2.config import FLAT_CONFIG_CLASSES, VideoLlama2Config
from videollama2.model import weight_names
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration, VideoLlama2Model
from videollama2.processing import VideoLlama2Processor, VideoLlama2VideoProcessor

weight_names.register()
AutoConfig.register(VideoLlama2Config.model_type, VideoLlama2Config, exist_ok=True)
for _name, _config in FLAT_CONFIG_CLASSES.items():
    AutoConfig.register(_name, _config, exist_ok=True)
AutoModel.register(VideoLlama2Config, VideoLlama2Model, exist_ok=True)
for _auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto.register(VideoLlama2Config, VideoLlama2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VideoLlama2Config, VideoLlama2Processor, exist_ok=True)
if is_torchvision_available():  # otherwise the class cannot even be registered with
    AutoVideoProcessor.register(VideoLlama2Config, VideoLlama2VideoProcessor, exist_ok=True)
