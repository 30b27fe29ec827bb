"""Bias tuning: the cheapest method in memory, for backbones that have biases."""

from __future__ import annotations

from transformers import PreTrainedModel

from embedlab.errors import ConfigError
from embedlab.method import FineTuningMethod


class BiasTuning(FineTuningMethod):
    """Trains the biases, of linear layers and norms, and freezes everything else.

    BitFit of Ben Zaken et al. 2022, arXiv:2106.10199; which parameters those are is read from their names, as in
    Ziarko et al. 2024, arXiv:2406.04165. GPT-2, OPT and Pythia have biases; Llama, Qwen 3 and Gemma have none.
    """

    def prepare(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Trains every parameter whose name holds "bias".

        Raises:
            ConfigError: if there is none.
        """
        biases = {parameter for name, parameter in backbone.named_parameters() if "bias" in name}
        if not biases:
            raise ConfigError(
                f"BiasTuning trains biases and {type(backbone).__name__} has none. Use LoRA, BlockFreezing or "
                "FullFineTuning, which fit any decoder, or a backbone with biases such as GPT-2, OPT or Pythia."
            )
        for parameter in backbone.parameters():
            parameter.requires_grad_(parameter in biases)
        return backbone
