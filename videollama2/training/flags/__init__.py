"""Defines the flags of ``train.py``, their help and recipes of them."""
