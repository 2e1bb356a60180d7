"""Encoders: pixels or sound -> features. One file each."""
