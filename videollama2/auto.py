"""Registers the model with transformers' Auto classes and its weight names with transformers' loader.

Import of this module is enough; it may be imported again at no cost. Afterwards ``AutoConfig``, ``AutoProcessor`` and
``AutoModelForImageTextToText`` open published and own checkpoints.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from videollama2.config import FLAT_CONFIG_CLASSES, VideoLlama2Config
from videollama2.model import weight_names
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor

weight_names.register()
AutoConfig.register(VideoLlama2Config.model_type, VideoLlama2Config, exist_ok=True)
for _name, _config in FLAT_CONFIG_CLASSES.items():
    AutoConfig.register(_name, _config, exist_ok=True)
AutoModelForImageTextToText.register(VideoLlama2Config, VideoLlama2ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VideoLlama2Config, VideoLlama2Processor, exist_ok=True)
