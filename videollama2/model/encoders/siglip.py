"""Describes SigLIP's vision encoder (Zhai et al., arXiv 2303.15343): patches only, no class token."""

from videollama2.model.encoders.vision import KnownTower, VisionEncoder

SIGLIP = VisionEncoder(
    model_type="siglip_vision_model",
    pair_type="siglip",
    model_class="SiglipVisionModel",
    layer_class="SiglipEncoderLayer",
    image_processor_class="SiglipImageProcessorPil",
    stem=("embeddings",),
    has_class_token=False,
    known={
        "google/siglip-so400m-patch14-384": KnownTower(
            vision_config={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
            },
            preprocessor={
                "size": {"height": 384, "width": 384},
                "resample": 3,
                "do_resize": True,
                "do_rescale": True,
                "do_normalize": True,
                "rescale_factor": 1 / 255,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            },
        ),
    },
)
