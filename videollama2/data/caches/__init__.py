"""Keeps what is computed once: results about annotation files, decoded frames, and features of frozen encoders."""
