"""Full fine-tuning trains everything, on every family."""

from __future__ import annotations

from embedlab_methods.full import FullFineTuning
from transformers import PreTrainedModel


def test_full_fine_tuning_trains_every_parameter(backbone: PreTrainedModel) -> None:
    backbone.requires_grad_(False)
    model = FullFineTuning().prepare(backbone)
    assert model is backbone
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == []
