"""Counts the memory and time of each way to train a model (``videollama2 plan``)."""
