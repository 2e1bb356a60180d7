"""Runs the model beyond a single conversation: offline batches, and engines of other projects."""

MAX_NEW_TOKENS = 1024
"""The longest answer to a harness that names none, as its other models give; at most half of a slot."""
