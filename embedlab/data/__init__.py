"""Where texts come from, how they become tokens and batches, and what is measured on them."""
