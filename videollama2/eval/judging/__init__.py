"""Judging open answers with a language model: the rubrics, the client, and what its replies mean."""
