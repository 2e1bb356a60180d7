"""Holds the training loops: supervised, DPO and GRPO."""
