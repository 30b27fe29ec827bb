"""The built-in fine-tuning methods: one file each, registered by the same entry points as a stranger's."""
