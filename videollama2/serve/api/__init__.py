"""The formats of OpenAI's API: requests, replies, messages and log-probabilities."""
