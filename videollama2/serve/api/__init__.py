"""Defines the formats of OpenAI's API: requests, replies, messages and log-probabilities."""
