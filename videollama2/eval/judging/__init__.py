"""Judges open answers by a language model: the rubrics, the client, and the parser of replies."""
