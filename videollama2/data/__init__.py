"""Reads annotation files, checks their records, and makes training samples of them."""
