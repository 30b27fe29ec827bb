"""The built-in fine-tuning methods, each in its own file, registered by entry points as a third party's methods are."""
