"""The ladder: small language models that are pre-trained here, so that there is a suite of sizes without a download."""
