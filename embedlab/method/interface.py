"""The one interface a fine-tuning method implements, so that methods can come from anyone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from embedlab.errors import ConfigError, PluginError

# Peak learning rates of Pythia's pre-training by non-embedding parameters (Biderman et al. 2023,
# arXiv:2304.01373, table 1 for the sizes; the rates as in Ziarko et al. 2024, arXiv:2406.04165).
_PYTHIA_PEAKS = (
    (1_189_888, 1e-3),
    (4_739_072, 1e-3),
    (18_915_328, 1e-3),
    (85_056_000, 6e-4),
    (302_311_424, 3e-4),
    (805_736_448, 3e-4),
    (1_208_602_624, 2e-4),
    (2_517_652_480, 1.6e-4),
    (6_444_163_072, 1.2e-4),
    (11_327_027_200, 1.2e-4),
)


class FineTuningMethod(ABC):
    """What of a backbone is trained, and how.

    A method is a small class whose constructor's keyword-only arguments are its options: their types and
    docstring are the command line's schema and help. It declares no costs; FLOPs are observed.

    Register it as an entry point in the group ``embedlab.methods``, under its class name.
    """

    def backbone_kwargs(self) -> dict[str, Any]:
        """Extra keyword arguments for ``AutoModel.from_pretrained``, a quantization config for instance."""
        return {}

    @abstractmethod
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        """Freezes, wraps or inserts; returns the module that is called in place of the backbone.

        Idempotent: preparing a prepared model again changes nothing. The returned module takes the
        backbone's ``input_ids`` (batch, length) and ``attention_mask`` (batch, length) and returns an
        output with ``last_hidden_state`` (batch, length, dim).

        Raises:
            ConfigError: if the method does not fit this backbone; the message says which would.
        """

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Optimizer groups: what requires a gradient, with weight decay on matrices only.

        A group may set ``weight_decay`` (0 for vectors here; matrices take the run's) and
        ``lr_scale`` (a factor on the run's learning rate, 1 by default).
        """
        trainable = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trainable if p.ndim >= 2]
        vectors = [p for p in trainable if p.ndim < 2]
        groups: list[dict[str, Any]] = []
        if matrices:
            groups.append({"params": matrices})
        if vectors:
            groups.append({"params": vectors, "weight_decay": 0.0})
        return groups

    def default_learning_rate(self, backbone: PreTrainedModel) -> float:
        """A tenth of the backbone's pre-training peak, the rule of Ziarko et al. 2024 for every method."""
        return pretraining_peak_learning_rate(backbone) / 10

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """A plain backbone with what was learned folded in, for export. May change ``model`` in place."""
        if not isinstance(model, PreTrainedModel):
            raise PluginError(
                f"{type(self).__name__}.prepare returned a {type(model).__name__}, which is no transformers "
                "model and cannot be exported as it is. Override merged() to return a plain backbone."
            )
        return model


def prepare_backbone(method: FineTuningMethod, backbone: PreTrainedModel) -> nn.Module:
    """The backbone as ``method`` prepares it, checked: the one way from a backbone to what is trained.

    Raises:
        ConfigError: if the method does not fit the backbone, or leaves nothing trainable.
        PluginError: if the method returns no module.
    """
    name = type(method).__name__
    model = method.prepare(backbone)
    if not isinstance(model, nn.Module):
        raise PluginError(
            f"{name}.prepare returned {model!r}. Expected the torch.nn.Module that is called in place of the backbone."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"{name} leaves nothing trainable in {type(backbone).__name__}. Choose other options or another "
            "method: `embedlab methods` lists them."
        )
    return model


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder's blocks in order: the ``ModuleList`` that holds the most weights.

    A list inside a block (experts, say) can be longer than the list of blocks, but never holds more.

    Raises:
        PluginError: if the model has no such list.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise PluginError(
            f"{type(model).__name__} has no list of decoder blocks. Expected a decoder-only transformer whose "
            "blocks stand in one torch.nn.ModuleList."
        )
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def embedding_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Token and position embeddings and the unembedding: what "non-embedding parameters" leaves out."""
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return tables | unembedding_parameters(model)


def unembedding_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Of the language-model head, where there is one."""
    heads = (module.get_output_embeddings() for module in model.modules() if isinstance(module, PreTrainedModel))
    return {parameter for head in heads if head is not None for parameter in head.parameters()}


def num_nonembedding_parameters(model: PreTrainedModel) -> int:
    """Parameters without token and position embeddings and without the unembedding."""
    left_out = embedding_parameters(model)
    return sum(p.numel() for p in model.parameters() if p not in left_out)


def pretraining_peak_learning_rate(backbone: PreTrainedModel) -> float:
    """The peak learning rate this backbone was pre-trained with, or one usual for its size.

    Read from the configuration's ``pretraining_peak_learning_rate`` where it is there (the ladders that
    ``embedlab pretrain`` makes have it); else interpolated, log-log in non-embedding parameters, between
    Pythia's sizes (14M to 12B) and constant beyond them.
    """
    stated = getattr(backbone.config, "pretraining_peak_learning_rate", None)
    if stated is not None:
        return float(stated)
    size = num_nonembedding_parameters(backbone)
    if size <= _PYTHIA_PEAKS[0][0]:
        return _PYTHIA_PEAKS[0][1]
    for (small, high), (large, low) in pairwise(_PYTHIA_PEAKS):
        if size <= large:
            position = math.log(size / small) / math.log(large / small)
            return float(high ** (1 - position) * low**position)
    return _PYTHIA_PEAKS[-1][1]
