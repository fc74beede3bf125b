"""Foreign checkpoints in and out: names and tensors, no networks."""
