"""The ladder: a suite of small language models that embedlab pre-trains itself, so that no model must be downloaded."""
