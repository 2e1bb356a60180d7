"""Decides the order of samples: the mixture of sets, and the batches of an epoch."""
