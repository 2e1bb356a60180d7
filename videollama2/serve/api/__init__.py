"""OpenAI's language: requests, replies, messages and log probabilities."""
