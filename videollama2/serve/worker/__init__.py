"""A model worker, which serves an engine over HTTP."""
