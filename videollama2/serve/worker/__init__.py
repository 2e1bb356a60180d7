"""Serves an engine over HTTP: a model worker."""
