"""From tokens to an embedding: the backbone, pooling, and both together."""
