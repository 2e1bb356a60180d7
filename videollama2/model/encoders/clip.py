"""Describes CLIP's vision encoder (Radford et al., arXiv 2103.00020): a class token, a norm before the first layer."""

from videollama2.model.encoders.vision import KnownTower, VisionEncoder

CLIP = VisionEncoder(
    model_type="clip_vision_model",
    pair_type="clip",
    model_class="CLIPVisionModel",
    layer_class="CLIPEncoderLayer",
    image_processor_class="CLIPImageProcessorPil",
    stem=("embeddings", "pre_layrnorm"),
    has_class_token=True,
    known={
        "openai/clip-vit-large-patch14-336": KnownTower(
            vision_config={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
                "hidden_act": "quick_gelu",
                "layer_norm_eps": 1e-5,
            },
            preprocessor={
                "crop_size": {"height": 336, "width": 336},
                "size": {"shortest_edge": 336},
                "resample": 3,
                "do_resize": True,
                "do_center_crop": True,
                "do_rescale": True,
                "do_normalize": True,
                "do_convert_rgb": True,
                "rescale_factor": 1 / 255,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
            },
        ),
    },
)
