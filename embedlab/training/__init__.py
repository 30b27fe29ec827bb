"""The training step, the callbacks around it, and its results: checkpoints, records and exported models."""
