"""Decoding video with PyAV: packets, the index of presentation times, and the reader over both."""
