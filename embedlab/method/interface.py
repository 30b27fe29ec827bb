"""The one interface that every fine-tuning method implements, so that anyone can add a method."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from embedlab.errors import ConfigError, PluginError

# Peak learning rates of Pythia's pre-training, by number of non-embedding parameters. The sizes are those of
# Biderman et al. 2023, arXiv:2304.01373, table 1; the learning rates are those of Ziarko et al. 2024, arXiv:2406.04165.
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
    """A fine-tuning method: it decides which weights of a backbone are trained, and how.

    A method is a small class. The keyword-only arguments of its constructor are the method's options: their types
    are the schema of the command line, and the class's docstring is their help. A method declares no costs, because
    embedlab observes the FLOPs of the prepared model.

    Register a method as an entry point in the group ``embedlab.methods``, under the name of its class.
    """

    def backbone_kwargs(self) -> dict[str, Any]:
        """Return extra keyword arguments for ``AutoModel.from_pretrained``, for example a quantization config."""
        return {}

    @abstractmethod
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze, wrap or insert modules, and return the module to call in place of the backbone.

        The method is idempotent: preparing a prepared model again changes nothing.

        Args:
            backbone: The pre-trained backbone, which may be changed in place.

        Returns:
            A module that takes ``input_ids`` (batch, length) and ``attention_mask`` (batch, length), as the backbone
            does, and returns an output with ``last_hidden_state`` (batch, length, dim).

        Raises:
            ConfigError: If the method does not fit this backbone. The message names what would fit.
        """

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups: all parameters that require a gradient.

        The default puts matrices into a group with the run's weight decay, and vectors into a group without weight
        decay. A group may set ``weight_decay`` (by default the run's) and ``lr_scale`` (a factor on the run's learning
        rate, by default 1).
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
        """Return the peak learning rate of a run that sets none.

        The default is a tenth of the peak learning rate of the backbone's pre-training, the rule of
        Ziarko et al. 2024, arXiv:2406.04165, for every method.
        """
        return pretraining_peak_learning_rate(backbone) / 10

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """Return a plain backbone that contains all that was learned, for export. May change ``model`` in place.

        Raises:
            PluginError: If ``model`` is not a model of transformers, and the method does not override ``merged``.
        """
        if not isinstance(model, PreTrainedModel):
            raise PluginError(
                f"{type(self).__name__}.prepare returned a {type(model).__name__}, which is not a transformers "
                "model and cannot be exported as it is. Override merged() to return a plain backbone."
            )
        return model


def prepare_backbone(method: FineTuningMethod, backbone: PreTrainedModel) -> nn.Module:
    """Prepare a backbone with a method, and check the result. Every backbone is prepared by this function.

    Returns:
        The model to train, with at least one trainable parameter.

    Raises:
        ConfigError: If the method does not fit the backbone, or leaves nothing trainable.
        PluginError: If the method returns something other than a module.
    """
    name = type(method).__name__
    model = method.prepare(backbone)
    if not isinstance(model, nn.Module):
        raise PluginError(
            f"{name}.prepare returned {model!r}. Expected a torch.nn.Module to call in place of the backbone."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"{name} leaves nothing trainable in {type(backbone).__name__}. Choose other options or another "
            "method: `embedlab methods` lists them."
        )
    return model


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder's blocks in order: the ``ModuleList`` that holds the most weights.

    A list inside a block (for example of experts) can have more entries than the list of blocks, but never holds more
    weights.

    Raises:
        PluginError: If the model has no ``ModuleList`` with entries.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise PluginError(
            f"{type(model).__name__} has no list of decoder blocks. Expected a decoder-only transformer with all "
            "blocks in one torch.nn.ModuleList."
        )
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def embedding_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of token embeddings, position embeddings and the unembedding.

    The term "non-embedding parameters" means all other parameters.
    """
    tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return tables | unembedding_parameters(model)


def unembedding_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of the language-model head; an empty set if the model has no head."""
    heads = (module.get_output_embeddings() for module in model.modules() if isinstance(module, PreTrainedModel))
    return {parameter for head in heads if head is not None for parameter in head.parameters()}


def num_nonembedding_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters without token embeddings, position embeddings and the unembedding."""
    left_out = embedding_parameters(model)
    return sum(p.numel() for p in model.parameters() if p not in left_out)


def pretraining_peak_learning_rate(backbone: PreTrainedModel) -> float:
    """Return the peak learning rate of a backbone's pre-training, or a usual value for a backbone of this size.

    The value is read from the field ``pretraining_peak_learning_rate`` of the backbone's configuration, if the field
    is set (models that ``embedlab pretrain`` makes have it). Otherwise it is interpolated between the learning rates
    of Pythia's sizes (14M to 12B), linearly in the logarithms of learning rate and non-embedding parameters. Outside
    the range of Pythia's sizes the value is constant.
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
