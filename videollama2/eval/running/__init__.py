"""Asks the questions of a benchmark: by commands, by the engine in batches, and while a model is trained."""
