"""Every registered method keeps the contract on every family, and the contract catches those that do not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from embedlab.errors import ConfigError
from embedlab.method import FineTuningMethod, prepare_backbone
from embedlab.method.registry import discover, method_class
from embedlab.testing import CHECKS, FAMILIES, Check, contract, tiny_backbone

METHODS = sorted(discover())


def refusal(method: str, family: str) -> str | None:
    """What a method says to a backbone that it does not fit; None if it fits."""
    try:
        prepare_backbone(method_class(method)(), tiny_backbone(family))
    except ConfigError as error:
        return str(error)
    return None


PAIRS = [(method, family) for method in METHODS for family in FAMILIES]
FITTING = [pair for pair in PAIRS if refusal(*pair) is None]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("method", "family"), FITTING)
def test_registered_methods_keep_the_contract(check: Check, method: str, family: str) -> None:
    check(method_class(method)(), lambda: tiny_backbone(family))


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_only_bias_tuning_refuses_a_family_and_only_one_without_biases(method: str, family: str) -> None:
    has_biases = any("bias" in name for name, _ in tiny_backbone(family).named_parameters())
    message = refusal(method, family)
    assert (message is not None) == (method == "BiasTuning" and not has_biases)
    if message is not None:
        named = [other for other in METHODS if other != method and re.search(rf"\b{other}\b", message)]
        assert named, "the message names methods that work"
        assert [other for other in named if refusal(other, family) is not None] == []


# A contract is worth what it refuses: each of these breaks it in one way that has happened to someone.


class TrainsTheLastBlock(FineTuningMethod):
    """Keeps the contract; the faults below change one thing each."""

    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        """Trains the last block."""
        backbone.requires_grad_(False)
        backbone.layers[-1].requires_grad_(True)
        return backbone


class OptionWithoutAType(TrainsTheLastBlock):
    """An option.

    Args:
        rank: of something.
    """

    def __init__(self, *, rank=3) -> None:  # type: ignore[no-untyped-def]
        self.rank = rank


class PositionalOption(TrainsTheLastBlock):
    """An option.

    Args:
        rank: of something.
    """

    def __init__(self, rank: int = 3) -> None:
        self.rank = rank


class UndocumentedOption(TrainsTheLastBlock):
    """An option."""

    def __init__(self, *, rank: int = 3) -> None:
        self.rank = rank


class OptionWithoutADefault(TrainsTheLastBlock):
    """An option.

    Args:
        rank: of something.
    """

    def __init__(self, *, rank: int) -> None:
        self.rank = rank


class ScalesEachTimeItPrepares(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        with torch.no_grad():
            backbone.layers[-1].mlp.dense_h_to_4h.weight.mul_(0.5)
        return super().prepare(backbone)


class FreezesMoreEachTimeItPrepares(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        trained = [p for p in backbone.parameters() if p.requires_grad]
        for parameter in trained[: len(trained) // 2]:
            parameter.requires_grad_(False)
        return backbone


class DrawsFromItsOwnGenerator(TrainsTheLastBlock):
    generator = torch.Generator()

    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        nn.init.normal_(backbone.layers[0].mlp.dense_h_to_4h.weight, generator=self.generator)
        return super().prepare(backbone)


class MakesHalfPrecision(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        backbone.layers[-1].to(torch.bfloat16)
        return super().prepare(backbone)


class LeavesDropoutOn(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        backbone.layers[-1].train()
        return super().prepare(backbone)


class HalvesTheWidth(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        def narrow(_module: nn.Module, _inputs: object, output: object) -> object:
            output.last_hidden_state = output.last_hidden_state[..., :16]  # type: ignore[attr-defined]
            return output

        backbone.register_forward_hook(narrow)
        return super().prepare(backbone)


class TrainsAnUnusedParameter(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        model = super().prepare(backbone)
        model.unused = nn.Parameter(torch.zeros(3, device=backbone.device))
        return model


class MultipliesByZero(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        backbone.layers[-1].register_forward_hook(lambda *args: args[-1] * 0)
        return super().prepare(backbone)


class HasNoEffect(TrainsTheLastBlock):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        return [{**group, "lr": 0.0} for group in super().parameter_groups(model)]


class CountsInABuffer(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        backbone.register_buffer("calls", torch.zeros(()))
        backbone.register_forward_hook(lambda module, *_: module.calls.add_(1) and None)
        return super().prepare(backbone)


class NormalizesOverTheBatch(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        backbone.layers[-1].register_forward_hook(lambda *args: args[-1] - args[-1].mean((0, 1)))
        return super().prepare(backbone)


class ForgetsAGroup(TrainsTheLastBlock):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        return super().parameter_groups(model)[:1]


class GroupsEverythingTwice(TrainsTheLastBlock):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        return 2 * super().parameter_groups(model)


class SetsARateTheScheduleOverwrites(TrainsTheLastBlock):
    def parameter_groups(self, model: nn.Module) -> list[dict[str, object]]:
        return [{**group, "lr": 1.0} for group in super().parameter_groups(model)]


class HasNoRate(TrainsTheLastBlock):
    def default_learning_rate(self, backbone: PreTrainedModel) -> float:
        return float("nan")


class StopsGradientsWhenCheckpointing(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        if any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules()):
            backbone.layers[-1].attention.register_forward_hook(
                lambda *args: tuple(t if t is None else t.detach() for t in args[-1])
            )
        return super().prepare(backbone)


class MergesNothing(TrainsTheLastBlock):
    def merged(self, model: nn.Module) -> PreTrainedModel:
        return tiny_backbone("gpt_neox")


class MergesIntoAnotherClass(TrainsTheLastBlock):
    def merged(self, model: nn.Module) -> PreTrainedModel:
        return tiny_backbone("llama")


class KeepsARunningMean(TrainsTheLastBlock):
    def prepare(self, backbone: PreTrainedModel) -> nn.Module:
        backbone.register_buffer("mean", torch.zeros(()))

        def shift(module: nn.Module, _inputs: object, output: object) -> object:
            if module.training:
                module.mean += 1
            output.last_hidden_state = output.last_hidden_state + module.mean  # type: ignore[attr-defined]
            return output

        backbone.register_forward_hook(shift)
        return super().prepare(backbone)


FAULTS: list[tuple[Callable[[], FineTuningMethod], Check, str]] = [
    (OptionWithoutAType, contract.check_options_are_the_schema, "needs a type"),
    (PositionalOption, contract.check_options_are_the_schema, "must be keyword-only"),
    (UndocumentedOption, contract.check_options_are_the_schema, "needs a line under `Args:`"),
    (lambda: OptionWithoutADefault(rank=3), contract.check_options_are_the_schema, "needs a default"),
    (ScalesEachTimeItPrepares, contract.check_prepare_is_idempotent, "called on its own result, changed"),
    (FreezesMoreEachTimeItPrepares, contract.check_prepare_is_idempotent, "trains other parameters"),
    (DrawsFromItsOwnGenerator, contract.check_prepare_depends_on_the_seed_alone, "twice with the same seed"),
    (MakesHalfPrecision, contract.check_prepare_keeps_dtype_and_mode, "bfloat16 in a float32 backbone"),
    (LeavesDropoutOn, contract.check_prepare_keeps_dtype_and_mode, "in training mode"),
    (HalvesTheWidth, contract.check_output_has_hidden_states, r"16\)\. Expected, as from the backbone"),
    (TrainsAnUnusedParameter, contract.check_everything_trained_takes_part, r"does not use \['unused'\]"),
    (MultipliesByZero, contract.check_everything_trained_takes_part, "Every gradient is zero"),
    (CountsInABuffer, contract.check_only_what_is_trained_changes, r"training changed \['calls'\]"),
    (HasNoEffect, contract.check_only_what_is_trained_changes, "changed nothing"),
    (NormalizesOverTheBatch, contract.check_embedding_does_not_depend_on_the_batch, "depends on the batch"),
    (ForgetsAGroup, contract.check_parameter_groups_hold_what_trains, "exactly the parameters"),
    (GroupsEverythingTwice, contract.check_parameter_groups_hold_what_trains, "more than once"),
    (SetsARateTheScheduleOverwrites, contract.check_parameter_groups_hold_what_trains, "Set 'lr_scale'"),
    (HasNoRate, contract.check_default_learning_rate_is_positive, "got nan"),
    (KeepsARunningMean, contract.check_trained_parameters_are_all_that_changes, "do not restore the model"),
    (DrawsFromItsOwnGenerator, contract.check_trained_parameters_are_all_that_changes, "do not restore the model"),
    (StopsGradientsWhenCheckpointing, contract.check_gradient_checkpointing_changes_nothing, "changes"),
    (MergesNothing, contract.check_merged_is_a_plain_backbone, "merged changes the embeddings"),
    (MergesIntoAnotherClass, contract.check_merged_is_a_plain_backbone, "must return a GPTNeoXModel"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_method_that_the_faults_are_made_from_keeps_the_contract(check: Check) -> None:
    check(TrainsTheLastBlock(), lambda: tiny_backbone("gpt_neox"))


@pytest.mark.parametrize(("make_method", "check", "message"), FAULTS)
def test_the_contract_refuses(make_method: Callable[[], FineTuningMethod], check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(make_method(), lambda: tiny_backbone("gpt_neox"))


def test_every_check_has_refused_something() -> None:
    unproven = set(CHECKS) - {check for _, check, _ in FAULTS}
    assert unproven == set()
