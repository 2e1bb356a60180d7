"""The media of requests: they are read while the model runs, encoded together and cached by their content."""
