"""Holds what all servers share: the application frame, guards, errors, streams and metrics."""
