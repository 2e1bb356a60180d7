"""Finds what a benchmark needs among downloaded files: archives, videos, sound tracks and subtitles."""
