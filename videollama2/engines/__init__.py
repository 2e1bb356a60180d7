"""Ways to run the model beyond a single conversation: offline batches, and engines of other projects."""
