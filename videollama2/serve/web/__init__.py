"""The parts that all servers share: the application frame, guards, errors, streams and metrics."""
