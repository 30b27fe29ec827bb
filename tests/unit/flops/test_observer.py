"""What a model costs is seen, whoever wrote it and whatever it does with its weights."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoModel, MambaConfig, MixtralConfig, PreTrainedModel

from embedlab.errors import PluginError
from embedlab.flops.observer import ProductCounter
from embedlab.flops.profile import observe
from embedlab.method import prepare_backbone
from embedlab.method.registry import method_class
from embedlab.testing import tiny_backbone
from helpers.flop_counts import LENGTH, algorithmic, block_scanner, counted, prepared, run


class Scaled(nn.Module):
    """A backbone whose hidden states go through something more."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)

    def forward(self, **inputs: Tensor) -> Any:
        output = self.backbone(**inputs)
        output.last_hidden_state = self.after(output.last_hidden_state)
        return output

    def after(self, hidden_BLD: Tensor) -> Tensor:
        raise NotImplementedError


class Einsum(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.down = nn.Parameter(torch.randn(32, 1))
        self.up = nn.Parameter(torch.randn(1, 32))

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return hidden_BLD + torch.einsum("bld,dr,re->ble", hidden_BLD, self.down, self.up)


class FoldsItsWeights(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.weight = nn.Parameter(torch.randn(32, 32), requires_grad=False)
        self.down = nn.Parameter(torch.randn(4, 32))
        self.up = nn.Parameter(torch.randn(32, 4))

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return linear(hidden_BLD, self.weight + self.up @ self.down)


class _HiddenLinear(torch.autograd.Function):
    """As quantized layers do it: no flag of autograd is seen inside, and the backward pass is its own."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        return linear(hidden.contiguous(), packed.to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (packed,) = ctx.saved_tensors
        return gradient @ packed.to(gradient.dtype), None


class Dequantizes(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.gain = nn.Parameter(torch.ones(32))
        self.packed = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return _HiddenLinear.apply(hidden_BLD * self.gain, self.packed)  # type: ignore[no-any-return]


class PrependsTokens(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.prompt = nn.Parameter(torch.randn(4, 32))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        texts_BLD = self.backbone.get_input_embeddings()(input_ids)
        prompts = self.prompt.expand(len(input_ids), -1, -1)
        ones = attention_mask.new_ones(len(input_ids), 4)
        output = self.backbone(
            inputs_embeds=torch.cat([prompts, texts_BLD], 1), attention_mask=torch.cat([ones, attention_mask], 1)
        )
        output.last_hidden_state = output.last_hidden_state[:, 4:]
        return output


@pytest.mark.parametrize("kind", [Einsum, FoldsItsWeights, Dequantizes, PrependsTokens])
def test_a_strangers_method_is_counted_without_declaring_anything(kind: type[Scaled]) -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    parameters = list(backbone.parameters())
    model = kind(backbone)
    profile = observe(model, parameters, max_length=32)
    assert algorithmic(profile) == counted(model)
    assert profile.added_parameters == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in parameters)


def test_what_folding_costs_is_counted_once_a_call_and_not_for_each_token() -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    profile = observe(FoldsItsWeights(backbone), list(backbone.parameters()), max_length=32)
    assert profile.overhead.per_call == 3 * 2 * 32 * 4 * 32, "one product forward, two backward"


def test_a_prompt_of_virtual_tokens_costs_something_for_each_text() -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    profile = observe(PrependsTokens(backbone), list(backbone.parameters()), max_length=32)
    assert profile.overhead.per_text > 0 and profile.attention.per_token > 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_layer_counts_as_the_matrix_it_stands_for(bits: int) -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    plain, parameters = prepared("gpt_neox", "BiasTuning", attn_implementation="eager")
    expected = observe(plain, parameters, max_length=32)
    for block in plain.layers:  # type: ignore[union-attr]
        old: nn.Linear = block.mlp.dense_h_to_4h  # type: ignore[union-attr, assignment]
        new: nn.Module
        if bits == 4:
            new = Linear4bit(old.in_features, old.out_features, quant_type="nf4", compute_dtype=torch.float32)
        else:
            new = Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)
        new.load_state_dict(old.state_dict())
        block.mlp.dense_h_to_4h = new.to("cpu").train()  # type: ignore[union-attr]
        new.bias.requires_grad_(True)  # type: ignore[union-attr, operator]
        quantized = new.weight.data  # type: ignore[union-attr]
        if bits == 4:
            assert quantized.dtype == torch.uint8, "it is quantized"
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter.ndim == 1 and parameter.is_floating_point() and parameter.requires_grad)
    received = observe(plain, list(plain.parameters()), max_length=32)
    assert received.matrices == expected.matrices
    assert received.parameters == expected.parameters


class OpaqueLayer(nn.Module):
    """Computes where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        with torch.no_grad():
            product = hidden_BLD.numpy(force=True) @ self.weight.detach().numpy(force=True)
        return hidden_BLD + torch.from_numpy(product)


def test_a_layer_that_cannot_be_seen_is_named() -> None:
    class Opaque(Scaled):
        def __init__(self, backbone: PreTrainedModel) -> None:
            super().__init__(backbone.requires_grad_(True))
            self.hidden_away = OpaqueLayer()

        def after(self, hidden_BLD: Tensor) -> Tensor:
            return self.hidden_away(hidden_BLD)  # type: ignore[no-any-return]

    backbone = tiny_backbone("gpt_neox")
    with pytest.raises(
        PluginError, match=r"layer 'hidden_away' \(OpaqueLayer\) cannot be observed.*'weight' of shape \(32, 32\)"
    ):
        observe(Opaque(backbone), list(backbone.parameters()), max_length=32)


def test_attention_of_a_package_is_counted_as_torchs_own() -> None:
    @torch.library.custom_op("embedlab_tests::attend", mutates_args=())
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    def interface(_module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return attend(query, key, value).transpose(1, 2), None

    AttentionInterface.register("embedlab_tests", interface)
    model, parameters = prepared("gpt_neox", "FullFineTuning", attn_implementation="eager")
    expected = observe(model, parameters, max_length=32)
    assert isinstance(model, PreTrainedModel)
    model.set_attn_implementation("embedlab_tests")
    assert observe(model, parameters, max_length=32) == expected
    assert model.config._attn_implementation == "embedlab_tests"


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_count_as_often_as_a_token_meets_one(implementation: str) -> None:
    config = MixtralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        experts_implementation=implementation,
    )
    model = AutoModel.from_config(config, attn_implementation="eager").train()
    profile = observe(model, list(model.parameters()), max_length=32)
    an_expert = 3 * 32 * 48
    attention = 32 * 32 * 2 + 2 * 32 * 16
    assert profile.matrices.forward == 2 * (attention + 2 * an_expert + 32 * 4)
    assert profile.matrices.forward == profile.matrices.update == profile.matrices.backward
    if implementation != "grouped_mm":  # torch's counter does not know it
        assert algorithmic(profile) == counted(model)


def test_a_backbone_without_attention_is_counted_by_measurement() -> None:
    config = MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False)
    model = AutoModel.from_config(config).train()
    profile = observe(model, list(model.parameters()), max_length=32)
    assert profile.by_measurement
    assert algorithmic(profile) == counted(model)


class PadsToSixteen(PrependsTokens):
    """As models do that scan in blocks."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        padding = -input_ids.shape[1] % 16
        padded = (nn.functional.pad(tensor, (0, padding)) for tensor in (input_ids, attention_mask))
        return super().forward(*padded)


class PadsAndFolds(PadsToSixteen):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.down = nn.Parameter(torch.randn(64, 32))
        self.up = nn.Parameter(torch.randn(32, 64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        output = super().forward(input_ids, attention_mask)
        output.last_hidden_state = linear(output.last_hidden_state, self.up @ self.down)
        return output


def test_a_cost_that_is_no_polynomial_is_measured_between_lengths() -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager", max_position_embeddings=128)
    model = PadsToSixteen(backbone)
    profile = observe(model, list(backbone.parameters()), max_length=100)
    assert profile.by_measurement
    for length in (2, 8, 16, 64, 100):
        assert algorithmic(profile, length) == counted(model, length)


class Solves(Scaled):
    """Solves equations or factorizes matrices: no products, but their gradients are."""

    def __init__(self, backbone: PreTrainedModel, kind: str, trains: bool) -> None:
        super().__init__(backbone)
        self.weight = nn.Parameter(torch.eye(32) + 0.01 * torch.randn(32, 32), requires_grad=trains)
        self.gain = nn.Parameter(torch.ones(32))
        self.kind = kind

    def after(self, hidden_BLD: Tensor) -> Tensor:
        hidden_BLD = hidden_BLD * self.gain
        gram_BDD = torch.eye(32) + hidden_BLD.transpose(1, 2) @ hidden_BLD
        match self.kind:
            case "triangular system of data":
                return torch.linalg.solve_triangular(gram_BDD, hidden_BLD.mT, upper=False).mT
            case "system of data":
                return torch.linalg.solve(gram_BDD, hidden_BLD.mT).mT
            case "factor of data":
                return hidden_BLD + torch.linalg.cholesky(gram_BDD).sum((1, 2))[:, None, None]
            case "triangular system of weights":
                return torch.linalg.solve_triangular(self.weight, hidden_BLD, upper=True, left=False)
            case "system of weights":
                return torch.linalg.solve(self.weight, hidden_BLD, left=False)
            case "inverse of weights":
                return linear(hidden_BLD, torch.linalg.inv(self.weight))
        raise AssertionError(self.kind)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize(
    "kind",
    [
        *("triangular system of data", "system of data", "factor of data"),
        *("triangular system of weights", "system of weights", "inverse of weights"),
    ],
)
def test_products_that_only_a_backward_pass_has_are_counted(kind: str, trains: bool) -> None:
    torch.manual_seed(0)
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    model = Solves(backbone, kind, trains)
    profile = observe(model, list(backbone.parameters()), max_length=32)
    assert algorithmic(profile) == counted(model)


@pytest.mark.parametrize("num_texts", [1, 2, 7])
def test_what_a_call_costs_is_no_part_of_what_texts_are_measured_to_cost(num_texts: int) -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager", max_position_embeddings=128)
    model = PadsAndFolds(backbone)
    profile = observe(model, list(backbone.parameters()), max_length=100)
    assert profile.attention.measured and profile.overhead.per_call == 3 * 2 * 32 * 64 * 32
    for length in (2, 16, 64, 100):
        expected = counted(model, length, num_texts)
        assert algorithmic(profile, length, num_texts) == pytest.approx(expected, rel=1e-6), "but for rounding"


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("mamba2", "FullFineTuning"),
        ("mamba2", "BlockFreezing"),
        ("qwen3_next", "FullFineTuning"),
        ("qwen3_next", "LoRA"),
    ],
)
def test_a_model_that_scans_in_blocks_is_counted_at_every_length(family: str, method: str) -> None:
    backbone = block_scanner(family)
    parameters = list(backbone.parameters())
    model = prepare_backbone(method_class(method)(), backbone).train()
    profile = observe(model, parameters, max_length=200)
    for length in (1, 2, 13, 17, 33, 64, 65, 100, 129, 193, 199):
        assert algorithmic(profile, length) == pytest.approx(counted(model, length), rel=0.005), length
    assert algorithmic(profile, 100, 3) == pytest.approx(counted(model, 100, 3), rel=0.005)


LAYERS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
VIRTUAL = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 4}
ADAPTERS: dict[str, peft.PeftConfig] = {
    "DoRA": peft.LoraConfig(r=4, target_modules=LAYERS, use_dora=True),
    "LoRA of embeddings": peft.LoraConfig(r=4, target_modules=[*LAYERS, "embed_in"]),
    "AdaLoRA": peft.AdaLoraConfig(total_step=10, target_modules=LAYERS),
    "LoKr": peft.LoKrConfig(r=4, target_modules=LAYERS),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules=LAYERS),
    "HRA": peft.HRAConfig(r=4, target_modules=LAYERS),
    "FourierFT": peft.FourierFTConfig(n_frequency=10, target_modules=LAYERS),
    "VeRA": peft.VeraConfig(r=4, target_modules=LAYERS[:1]),
    "IA3": peft.IA3Config(target_modules=LAYERS, feedforward_modules=LAYERS[-1:]),
    "SHiRA": peft.ShiraConfig(r=4, target_modules=LAYERS[:1]),
    "prompt tuning": peft.PromptTuningConfig(**VIRTUAL),
    "p-tuning": peft.PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=16),
    "prefix tuning": peft.PrefixTuningConfig(**VIRTUAL, encoder_hidden_size=16, prefix_projection=True),
}


def adapted(config: peft.PeftConfig) -> tuple[nn.Module, list[nn.Parameter]]:
    torch.manual_seed(0)
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    parameters = list(backbone.parameters())
    return peft.get_peft_model(backbone, config).train(), parameters


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_method_of_peft_is_counted_for_one_text_and_for_several(name: str) -> None:
    model, parameters = adapted(ADAPTERS[name])
    profile = observe(model, parameters, max_length=32)
    for num_texts in (1, 3):
        assert algorithmic(profile, num_texts=num_texts) == counted(model, num_texts=num_texts)


def test_what_a_backward_pass_computes_again_is_left_out() -> None:
    model, parameters = adapted(peft.LoHaConfig(r=4, target_modules=LAYERS))
    profile = observe(model, parameters, max_length=32)
    with FlopCounterMode(display=False) as counter:
        run(model, LENGTH).sum().backward()
    # LoHa's own backward pass makes both low-rank products anew, a third of what they cost there and back.
    again = profile.overhead.per_call / 3
    assert algorithmic(profile) + again == counter.get_total_flops()
    assert observe(model, parameters, max_length=32) == profile, "the same whenever one looks"


class DoesWithoutAMatrix(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.gain = nn.Parameter(torch.ones(32))
        self.switched_off = nn.Parameter(torch.ones(32, 32))

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return hidden_BLD * self.gain


def test_a_matrix_that_is_not_used_costs_nothing_and_is_no_hindrance() -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    model = DoesWithoutAMatrix(backbone)
    profile = observe(model, list(backbone.parameters()), max_length=32)
    assert algorithmic(profile) == counted(model)
    assert profile.added.forward == 0


class LooksUpAVector(Scaled):
    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        self.table = nn.Embedding(8, 32)

    def after(self, hidden_BLD: Tensor) -> Tensor:
        return hidden_BLD + self.table(torch.zeros(1, dtype=torch.int64))


def test_a_lookup_is_free_in_the_papers_convention_too() -> None:
    backbone = tiny_backbone("gpt_neox", attn_implementation="eager")
    without = observe(backbone.requires_grad_(False), list(backbone.parameters()), max_length=32)
    profile = observe(LooksUpAVector(backbone), list(backbone.parameters()), max_length=32)
    assert profile.paper_flops_per_token() == without.paper_flops_per_token()


@pytest.mark.parametrize("max_length", [1, 3, 5, 8])
def test_texts_may_be_shorter_than_what_is_looked_at(max_length: int) -> None:
    model, parameters = prepared("gpt_neox", "LoRA", attn_implementation="eager")
    assert observe(model, parameters, max_length=max_length) == observe(model, parameters, max_length=32)


class Convolves(nn.Module):
    """Looks tokens up, lays them out in as many dimensions as its convolution has, and convolves them."""

    def __init__(self, convolution: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 12)
        self.convolution = convolution
        self.dimensions = dimensions

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        hidden_BCL = self.table(input_ids).transpose(1, 2)
        hidden = hidden_BCL.unsqueeze(-1).expand(-1, -1, -1, 5) if self.dimensions == 2 else hidden_BCL
        return SimpleNamespace(last_hidden_state=self.convolution(hidden))


KERNEL, STRIDE, DILATION, PADDING, WIDTH = 3, 2, 2, 1, 5


def positions_of(size: int, *, stride: int, dilation: int) -> int:
    """Number of places where the filter fits on ``size`` values that are padded on both sides."""
    return len(range(0, size + 2 * PADDING - dilation * (KERNEL - 1), stride))


@pytest.mark.parametrize("train", ["everything", "the convolution", "the table"])
@pytest.mark.parametrize("groups", [1, 3, 12], ids=lambda groups: f"{groups} groups")
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (STRIDE, 1), (1, DILATION)])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_a_convolution_costs_each_weight_at_each_position(
    kind: type[nn.Module], stride: int, dilation: int, groups: int, train: str
) -> None:
    dimensions, transposed = int(kind.__name__[-2]), "Transpose" in kind.__name__
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": PADDING, "groups": groups}
    model = Convolves(kind(12, 24, KERNEL, **options), dimensions)
    model.convolution.requires_grad_(train != "the table")
    model.table.requires_grad_(train != "the convolution")
    # Each of the 24 outputs of a position multiplies the inputs of its group with its filter; a transposed convolution
    # spreads each of the 12 inputs of a position over the outputs of its group.
    weights = 12 * 24 // groups * KERNEL**dimensions
    sizes = [LENGTH, WIDTH][:dimensions]
    positions = [size if transposed else positions_of(size, stride=stride, dilation=dilation) for size in sizes]
    forward = 2 * weights * math.prod(positions)
    expected = forward * (1 + (train != "the table") + (train != "the convolution"))
    with ProductCounter() as executed:
        run(model, LENGTH).sum().backward()
    assert executed.flops == expected
    assert algorithmic(observe(model, list(model.parameters()), max_length=LENGTH)) == expected
