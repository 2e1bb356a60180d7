"""Refuses flags of ``train.py`` that contradict each other, or that have no effect."""
