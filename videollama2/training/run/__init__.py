"""Keeps a run: its folder and identity, its checkpoints, stopping, and going on."""
