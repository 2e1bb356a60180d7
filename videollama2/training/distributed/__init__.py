"""Spreads a training over processes: DeepSpeed, FSDP2, and restarts by torchrun."""
