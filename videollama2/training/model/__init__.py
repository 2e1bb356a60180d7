"""Builds the model to train: its parts, which of them learn, and how they are computed."""
