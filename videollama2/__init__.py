"""VideoLLaMA 2: train, evaluate and serve video language models."""

__version__ = "0.1.0"
