"""Manages a group of workers: registration, choice of a worker, failover, and a client for it."""
