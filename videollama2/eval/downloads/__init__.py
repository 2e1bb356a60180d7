"""Finds what a benchmark needs among downloaded files, in folders and archives, and lays it out."""
