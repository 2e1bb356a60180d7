"""Handles media that clients name or send: downloads from allowed hosts, and decoding in sandboxed processes."""
