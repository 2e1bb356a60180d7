"""Media of a request: read beside the model, encoded together, remembered by content."""
