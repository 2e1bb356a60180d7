"""Defines the built-in world of moving shapes: its scenes, questions and data sets, and the parts of the tiny model.

No other part of the package imports this one.
"""
