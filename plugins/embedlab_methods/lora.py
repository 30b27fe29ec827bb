"""LoRA: low-rank updates beside frozen weights, for backbones whose optimizer state would not fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from embedlab.errors import ConfigError
from embedlab.method import FineTuningMethod

_ALL_LINEAR = "all-linear"
_DEFAULT_RANK = 32
_DEFAULT_SCALE = 2.0


class LoRA(FineTuningMethod):
    """Trains a low-rank update of linear layers and freezes everything else.

    Hu et al. 2021, arXiv:2106.09685, through peft. Optimal at high budgets according to Ziarko et al. 2024,
    arXiv:2406.04165, who target ``[query_key_value, dense, dense_h_to_4h, dense_4h_to_h, embed_in]`` of Pythia
    with rank 32. Their configuration leaves alpha at peft's 8 and raises the learning rate to 1e-3; here alpha is
    larger and the rate is the one of every method.

    Args:
        rank: of each update.
        alpha: an update is scaled by ``alpha / rank``. By default twice the rank, so by 2. With ``rslora`` the
            default is 11.3, which scales by 2 at rank 32.
        targets: ``all-linear``, or names of linear layers and of the token embedding. A name selects every such
            layer whose full name is it or ends in it at a dot.
        dropout: rate on the update's input.
        rslora: scale by ``alpha / sqrt(rank)``, for large ranks (Kalajdzievski 2023, arXiv:2312.03732).

    Raises:
        ConfigError: if an option is out of range, or a target names no such layer of the backbone.
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
                f"LoRA dropout must be at least 0 and below 1, got dropout={dropout}. Leave it out for none."
            )
        self.rank = rank
        self.alpha = alpha if alpha is not None else _DEFAULT_SCALE * (math.sqrt(_DEFAULT_RANK) if rslora else rank)
        self.targets = targets
        self.dropout = dropout
        self.rslora = rslora

    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        """Puts an update beside each targeted layer; the fresh update is zero, so the embeddings stay as they were.

        Raises:
            ConfigError: if a target names no such layer of the backbone, or peft cannot adapt one.
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
            # GPT-2 keeps its weights transposed; peft sees it too, but warns.
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in targeted.values()),
        )
        try:
            with _without_warnings_of_peft():
                model: nn.Module = get_peft_model(backbone, config)
        except ValueError as error:  # peft refuses some layers of state-space models
            raise ConfigError(
                f"LoRA cannot adapt all targeted layers of {type(backbone).__name__}: {error} The targeted layers are: "
                f"{_last_names(targeted)}. Name those to adapt in targets."
            ) from error
        # For reentrant checkpointing, which embedlab does not use, peft makes the embeddings require a gradient:
        # that would send one back through blocks that need none.
        backbone.disable_input_require_grads()
        return model.train(backbone.training)  # peft's own layers begin in training mode, dropout and all

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """The backbone with each update added to the weight it stands beside."""
        assert isinstance(model, PeftModel)
        with _without_warnings_of_peft():
            backbone: PreTrainedModel = model.merge_and_unload()
        return backbone

    def _targeted(self, backbone: PreTrainedModel) -> dict[str, nn.Module]:
        """The layers to adapt by their full names."""
        modules = dict(backbone.named_modules())
        linear: dict[str, nn.Module] = {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D)}
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


@contextmanager
def _without_warnings_of_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it reads names that transformers has renamed
        # About an unembedding that shares the token embedding's weights: these backbones have none.
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        yield


def _last_names(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def _selects(target: str, name: str) -> bool:
    """Whether a target selects the module of this full name: it is the name, or ends it at a dot."""
    return name == target or name.endswith(f".{target}")
