"""Reads the media of requests while the model runs, encodes them together, and caches them by their content."""
