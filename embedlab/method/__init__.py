"""Fine-tuning methods: the interface that a plugin implements, and the door that it comes through."""

from embedlab.method.interface import (
    FineTuningMethod,
    decoder_blocks,
    embedding_parameters,
    num_nonembedding_parameters,
    prepare_backbone,
    pretraining_peak_learning_rate,
    unembedding_parameters,
)

__all__ = [
    "FineTuningMethod",
    "decoder_blocks",
    "embedding_parameters",
    "num_nonembedding_parameters",
    "prepare_backbone",
    "pretraining_peak_learning_rate",
    "unembedding_parameters",
]
