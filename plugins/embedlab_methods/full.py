"""Full fine-tuning: the method that every other is compared with."""

from __future__ import annotations

from transformers import PreTrainedModel

from embedlab.method import FineTuningMethod


class FullFineTuning(FineTuningMethod):
    """Trains every weight: 6 FLOPs a token and non-embedding parameter.

    Optimal at low budgets according to Ziarko et al. 2024, arXiv:2406.04165.
    """

    def prepare(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Unfreezes every parameter that can have a gradient; integer weights of a quantized model cannot."""
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return backbone
