"""Media of requests are read beside the model, encoded together and remembered by their content."""
