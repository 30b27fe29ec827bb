"""Callbacks of the trainer: each does one thing beside the training step."""
