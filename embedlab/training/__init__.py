"""The training step, what runs around it, and what it leaves: checkpoints, records and exported models."""
