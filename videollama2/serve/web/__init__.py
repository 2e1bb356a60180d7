"""What every server has: application frame, guards, errors, streams and metrics."""
