"""Decodes video and sound with PyAV: containers, packets, the index of presentation times, and readers over them."""

from videollama2.garbage_collection import leave_garbage_to_parent

leave_garbage_to_parent()
