"""Lets the model answer questions while it is trained, by the inference engine."""
