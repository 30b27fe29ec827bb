"""The least memory of training is estimated without weights, and within a fifth of the graph that training keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embedlab.errors import ConfigError
from embedlab.flops.memory import MemoryEstimate
from embedlab.gradcache.chunking import Chunk
from embedlab.gradcache.engine import GraphBytes
from embedlab.method import prepare_backbone
from embedlab.method.registry import method_class
from embedlab.model.backbone import BackboneConfig, attention_keeps_scores, backbone_without_weights, load_backbone
from embedlab.model.encoder import Encoder
from embedlab.testing.backbones import save_tiny_backbone

LENGTH, TEXTS = 32, 16


def estimated(backbone: BackboneConfig, method: str, **options: Any) -> int:
    with torch.device("meta"):
        model = backbone_without_weights(backbone)
        prepared = prepare_backbone(method_class(method)(), model).train()
        options = {"keeps_scores": attention_keeps_scores(backbone, model), **options}
        return MemoryEstimate(prepared, model, max_length=LENGTH, tokens_per_chunk=TEXTS * LENGTH, **options).bytes()


def measured(
    backbone: BackboneConfig, method: str, dtype: torch.dtype | None = None, autocast: bool = False
) -> tuple[int, int]:
    """Bytes of weights, gradients and moments; and of the graph of one chunk."""
    model = prepare_backbone(method_class(method)(), load_backbone(backbone)).to(dtype).train()
    tokens_BL = torch.zeros(TEXTS, LENGTH, dtype=torch.int64)
    graph = GraphBytes(list(model.parameters()))
    with graph, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        embeddings_BD = Encoder(model, "mean")(Chunk(tokens_BL, torch.ones_like(tokens_BL), torch.arange(TEXTS)))
    embeddings_BD.sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *gradients, *moments]), graph.bytes


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gemma2"])
@pytest.mark.parametrize("method", ["FullFineTuning", "BlockFreezing", "LoRA"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_memory_is_that_of_weights_and_twice_the_graph(
    tmp_path: Path, family: str, method: str, precision: str
) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone", family)))
    dtype = torch.bfloat16 if precision == "bf16-true" else None
    weights, graph = measured(backbone, method, dtype, autocast=precision == "bf16-mixed")
    assert (estimated(backbone, method, precision=precision) - weights) / 2 == pytest.approx(graph, rel=0.2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_checkpointed_blocks_keep_their_input_and_one_graph_at_a_time(tmp_path: Path, precision: str) -> None:
    path = str(save_tiny_backbone(tmp_path / "backbone", "llama"))
    mixed = precision == "bf16-mixed"
    weights, whole = measured(BackboneConfig(path=path), "FullFineTuning", autocast=mixed)
    checkpointed = BackboneConfig(path=path, gradient_checkpointing=True)
    _, kept = measured(checkpointed, "FullFineTuning", autocast=mixed)
    assert kept < whole / 3
    memory = estimated(checkpointed, "FullFineTuning", precision=precision, gradient_checkpointing=True)
    assert (memory - weights) / 2 == pytest.approx(kept + whole / 4, rel=0.2), "of four blocks"


def test_weights_loaded_in_half_precision_have_half_the_moments(tmp_path: Path) -> None:
    path = str(save_tiny_backbone(tmp_path / "backbone"))
    backbone = BackboneConfig(path=path, dtype="bfloat16")
    weights, graph = measured(backbone, "FullFineTuning")
    assert (estimated(backbone, "FullFineTuning") - weights) / 2 == pytest.approx(graph, rel=0.2)


def test_moments_in_8_bits_are_two_bytes_a_trained_weight(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone")))
    difference = estimated(backbone, "FullFineTuning") - estimated(backbone, "FullFineTuning", optimizer_states="8bit")
    assert difference == 6 * sum(parameter.numel() for parameter in load_backbone(backbone).parameters())


def test_scores_count_where_attention_keeps_them(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone")), attention="eager")
    weights, graph = measured(backbone, "FullFineTuning")
    kept = (estimated(backbone, "FullFineTuning") - weights) / 2
    assert kept == pytest.approx(graph, rel=0.2)
    assert kept > 1.1 * (estimated(backbone, "FullFineTuning", keeps_scores=False) - weights) / 2


def test_an_unknown_precision_is_a_clear_error(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone")))
    with pytest.raises(ConfigError, match=r"trainer.precision is 'int8'. Expected one of 32-true"):
        estimated(backbone, "FullFineTuning", precision="int8")


def test_a_pass_that_is_made_anyway_gives_the_same_estimate(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone")))
    model = backbone_without_weights(backbone).train()
    memory = MemoryEstimate(model, model, max_length=33, tokens_per_chunk=TEXTS * 33)
    expected = memory.bytes()
    tokens_BL = torch.zeros(1, 33, dtype=torch.int64, device="meta")
    watched = memory.watching()
    assert isinstance(watched, GraphBytes)
    with watched:
        model(input_ids=tokens_BL, attention_mask=torch.ones_like(tokens_BL))
    assert memory.bytes() == expected


def test_a_text_as_long_as_a_layer_is_wide_is_not_taken_for_scores(tmp_path: Path) -> None:
    backbone = BackboneConfig(path=str(save_tiny_backbone(tmp_path / "backbone")))
    model = backbone_without_weights(backbone).train()
    at = {n: MemoryEstimate(model, model, max_length=n, tokens_per_chunk=16 * n).bytes() / n for n in (32, 33)}
    assert at[32] == pytest.approx(at[33], rel=0.05)
