"""LoRA: low-rank updates beside frozen weights, for backbones whose optimizer states would not fit in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from embedlab.errors import ConfigError
from embedlab.method import FineTuningMethod

_ALL_LINEAR = "all-linear"
_DEFAULT_RANK = 32
_DEFAULT_SCALE = 2.0


class LoRA(FineTuningMethod):
    """Train low-rank updates of linear layers, and freeze the backbone's weights.

    The method is that of Hu et al. 2021, arXiv:2106.09685, as implemented in peft. LoRA is optimal at high budgets
    according to Ziarko et al. 2024, arXiv:2406.04165, who target ``[query_key_value, dense, dense_h_to_4h,
    dense_4h_to_h, embed_in]`` of Pythia with rank 32. Their configuration keeps peft's default alpha of 8 and raises
    the learning rate to 1e-3. Here alpha is larger by default, and the default learning rate is the same as for every
    other method.

    Args:
        rank: Rank of the update of each layer.
        alpha: Numerator of the factor ``alpha / rank`` that scales each update. The default is twice the rank, for a
            factor of 2. With ``rslora`` the default is 11.3, for a factor of 2 at rank 32.
        targets: Layers to adapt: ``all-linear``, or names of linear layers and of the token embedding. A name selects
            the layer with this full name, and every layer whose full name ends in a dot and this name. A layer whose
            output is not its input times its weight, for example a router that chooses experts, is no linear layer.
        dropout: Dropout rate of the input of each update.
        rslora: Whether to scale each update by ``alpha / sqrt(rank)``, for large ranks (Kalajdzievski 2023,
            arXiv:2312.03732).

    Raises:
        ConfigError: If an option is out of range.
    """

    def __init__(
        self,
        *,
        rank: int = _DEFAULT_RANK,
        alpha: float | None = None,
        targets: str | list[str] = _ALL_LINEAR,
        dropout: float = 0.0,
        rslora: bool = False,
    ) -> None:
        if rank < 1:
            raise ConfigError(
                f"LoRA rank must be at least 1, got rank={rank}. Leave it out for the default of {_DEFAULT_RANK}."
            )
        if alpha is not None and not 0 < alpha < math.inf:
            raise ConfigError(
                f"LoRA alpha must be positive, got alpha={alpha}. Leave it out for the default of twice the rank."
            )
        if not targets:
            raise ConfigError(
                f"LoRA targets must name at least one layer, got targets={targets!r}. Leave it out for {_ALL_LINEAR}."
            )
        if not 0 <= dropout < 1:
            raise ConfigError(
                f"LoRA dropout must be at least 0 and below 1, got dropout={dropout}. Leave it out for no dropout."
            )
        self.rank = rank
        self.alpha = alpha if alpha is not None else _DEFAULT_SCALE * (math.sqrt(_DEFAULT_RANK) if rslora else rank)
        self.targets = targets
        self.dropout = dropout
        self.rslora = rslora

    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        """Put an update beside each targeted layer. A fresh update is zero, so the embeddings do not change.

        Raises:
            ConfigError: If a target names neither a linear layer nor the token embedding of the backbone, or peft
                cannot adapt a targeted layer.
        """
        if isinstance(backbone, PeftModel):
            return backbone
        targeted = self._targeted(backbone)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # declared int, used as any number
            target_modules=sorted(targeted),
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            # GPT-2 stores its weights transposed; peft detects this by itself, but with a warning.
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in targeted.values()),
        )
        try:
            with _without_warnings_of_peft():
                model: nn.Module = get_peft_model(backbone, config)
        except ValueError as error:  # peft refuses some layers of state-space models
            raise ConfigError(
                f"LoRA cannot adapt all targeted layers of {type(backbone).__name__}: {error} The targeted layers are: "
                f"{_last_names(targeted)}. Name the layers to adapt in targets."
            ) from error
        # For reentrant checkpointing, which embedlab does not use, peft makes the embeddings require a gradient.
        # The gradient would be propagated back through blocks that need no gradient.
        backbone.disable_input_require_grads()
        return model.train(backbone.training)  # peft's own layers start in training mode, with dropout

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """Return the backbone, with each update added to the weight of its layer."""
        assert isinstance(model, PeftModel)
        with _without_warnings_of_peft():
            backbone: PreTrainedModel = model.merge_and_unload()
        return backbone

    def _targeted(self, backbone: PreTrainedModel) -> dict[str, nn.Module]:
        """Return the layers to adapt, by their full names.

        Raises:
            ConfigError: If a target names neither a linear layer nor the token embedding.
        """
        modules = dict(backbone.named_modules())
        linear = {name: module for name, module in modules.items() if _is_linear(module)}
        if self.targets == _ALL_LINEAR:
            return linear
        tokens = backbone.get_input_embeddings()
        layers = {name: module for name, module in modules.items() if module is tokens} | linear
        targets = [self.targets] if isinstance(self.targets, str) else self.targets
        unknown = [target for target in targets if not any(_selects(target, name) for name in layers)]
        if unknown:
            raise ConfigError(
                f"LoRA targets {unknown} name neither a linear layer nor the token embedding of "
                f"{type(backbone).__name__}. It has: {_last_names(layers)}. Leave targets out for {_ALL_LINEAR}."
            )
        return {name: layer for name, layer in layers.items() if any(_selects(target, name) for target in targets)}


def _is_linear(layer: nn.Module) -> bool:
    """Return whether a layer maps each vector to one vector, so that an update can be added to its output.

    Some layers that derive from ``nn.Linear`` return something else, for example the scores of experts in a tuple. A
    quantized layer also has its own ``forward``, but returns what the layer that it stands for returns.
    """
    if not isinstance(layer, nn.Linear):
        return isinstance(layer, Conv1D)
    weight = layer.weight
    if type(layer).forward is nn.Linear.forward or not weight.is_floating_point():
        return True
    try:
        with torch.no_grad():
            output = layer(torch.zeros(1, layer.in_features, dtype=weight.dtype, device=weight.device))
    except Exception:  # the layer takes something other than vectors
        return False
    return isinstance(output, Tensor) and output.shape == (1, layer.out_features)


@contextmanager
def _without_warnings_of_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads names that transformers has renamed
        # The warning is about an unembedding that shares the weights of the token embedding: a backbone has none.
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        yield


def _last_names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def _selects(target: str, name: str) -> bool:
    """Return whether a target is the full name of a module, or the part of the full name after a dot."""
    return name == target or name.endswith(f".{target}")
