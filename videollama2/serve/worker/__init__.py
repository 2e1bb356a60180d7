"""A model worker: an engine behind HTTP."""
