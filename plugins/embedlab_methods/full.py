"""Full fine-tuning: the method that all other methods are compared with."""

from __future__ import annotations

from transformers import PreTrainedModel

from embedlab.method import FineTuningMethod


class FullFineTuning(FineTuningMethod):
    """Train every weight, at 6 FLOPs per token and non-embedding parameter.

    Full fine-tuning is optimal at low budgets according to Ziarko et al. 2024, arXiv:2406.04165.
    """

    def prepare(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Unfreeze every parameter that can have a gradient: all but the integer weights of a quantized model."""
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return backbone
