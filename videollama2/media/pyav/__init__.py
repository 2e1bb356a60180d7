"""Decodes video and sound with PyAV: containers, packets, the index of presentation times, and readers over them."""
