"""Looks inside an answer: how much each visual token weighed in it, and which words stood beside the chosen ones."""
