"""The model that turns tokens into an embedding: the backbone, the pooling, and the encoder that combines them."""
