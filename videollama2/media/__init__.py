"""Videos and images: which frames, how they are read, and how they become pixels.

``frames`` chooses frame numbers, ``video`` opens and reads, ``image`` loads stills, ``pixels`` resizes and
normalises. Nothing is imported here: PyAV, Pillow, numpy and torch load with the module that needs them.
"""
