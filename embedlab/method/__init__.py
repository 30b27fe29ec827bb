"""The interface of fine-tuning methods, which a plugin implements, and the registry that finds the plugins."""

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
