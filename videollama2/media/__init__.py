"""Reads media: finds their kinds, chooses frames, decodes them, and makes pixels and sound features of them.

``kinds`` holds the table of kinds and tells them apart, ``frames`` chooses frame numbers, ``video`` opens videos and
reads clips, ``image`` loads stills, ``audio`` reads sound, ``pixels`` resizes and normalises. Nothing is imported here:
PyAV, Pillow, numpy and torch load with the module that needs them.
"""
