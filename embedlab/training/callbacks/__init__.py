"""Callbacks of the trainer, each with one task beside the training step."""
