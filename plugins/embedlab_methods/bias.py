"""Bias tuning: the method that needs the least memory, for backbones that have biases."""

from __future__ import annotations

from transformers import PreTrainedModel

from embedlab.errors import ConfigError
from embedlab.method import FineTuningMethod


class BiasTuning(FineTuningMethod):
    """Train the biases of linear layers and norms, and freeze all other weights.

    The method is BitFit of Ben Zaken et al. 2022, arXiv:2106.10199. Biases are recognized by their names, as in
    Ziarko et al. 2024, arXiv:2406.04165. GPT-2, OPT and Pythia have biases; Llama, Qwen 3 and Gemma have no biases.
    """

    def prepare(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Unfreeze every parameter with "bias" in its name, and freeze all others.

        Raises:
            ConfigError: If no parameter has "bias" in its name.
        """
        biases = {parameter for name, parameter in backbone.named_parameters() if "bias" in name}
        if not biases:
            raise ConfigError(
                f"BiasTuning trains biases, but {type(backbone).__name__} has none. Use LoRA, BlockFreezing or "
                "FullFineTuning, which fit any decoder, or a backbone with biases such as GPT-2, OPT or Pythia."
            )
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter in biases)
        return backbone
