"""Serves models: a controller, model workers, an OpenAI-compatible API and a web page.

Only a model worker and the single-process demo import torch; everything else here starts in a fraction of a second.
"""
