"""The contract of every fine-tuning method, as checks that third parties can run on their own methods.

Each check takes a method and a function that makes a fresh backbone, always with the same weights, in float32
and evaluation mode. A check fails with an ``AssertionError`` that says what to change. In a test module::

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("check", CHECKS)
    def test_my_method_keeps_the_contract(check, family):
        check(MyMethod(), lambda: tiny_backbone(family))

Names of tensors end in their axes: B texts, L tokens, D dimensions.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from docstring_parser import parse
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, PreTrainedModel

from embedlab.method import FineTuningMethod, prepare_backbone

MakeBackbone = Callable[[], PreTrainedModel]
Check = Callable[[FineTuningMethod, MakeBackbone], None]

_TOLERANCE = 1e-5  # for a component of a unit-norm embedding, and for a gradient relative to its norm
_LENGTHS = (1, 3, 5, 12, 2, 7, 20, 9)  # tokens of each text: B = 8, four queries and then their four documents


def check_options_are_the_schema(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that every option is keyword-only, annotated, documented under ``Args:``, and has a default."""
    documented = {option.arg_name for option in parse(inspect.getdoc(type(method)) or "").params}
    for option in inspect.signature(type(method)).parameters.values():
        name = f"{type(method).__name__}'s option '{option.name}'"
        _require(option.kind is option.KEYWORD_ONLY, f"{name} must be keyword-only: put `*` before it.")
        _require(option.annotation is not option.empty, f"{name} needs a type, by which the command line parses it.")
        _require(option.default is not option.empty, f"{name} needs a default that works.")
        _require(option.name in documented, f"{name} needs a line under `Args:` in the class's docstring.")


def check_prepare_is_idempotent(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that preparing a prepared model again changes no parameter name, no bit and no ``requires_grad``."""
    once = _prepared(method, make_backbone)
    before, trained = _tensors(once), _trained(once).keys()
    twice = prepare_backbone(method, cast(PreTrainedModel, once))
    _require_same_bits(before, _tensors(twice), "prepare, called on its own result, changed")
    _require(_trained(twice).keys() == trained, "prepare, called on its own result, trains other parameters.")


def check_prepare_depends_on_the_seed_alone(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that the same seed gives the same bits: all ranks, and a resumed run, must start from the same weights."""
    first, second = _prepared(method, make_backbone), _prepared(method, make_backbone)
    _require_same_bits(_tensors(first), _tensors(second), "prepare, called twice with the same seed, gave different")


def check_prepare_keeps_dtype_and_mode(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that a backbone in float32 and evaluation mode is in float32 and evaluation mode after ``prepare``."""
    model = _prepared(method, make_backbone)
    for name, tensor in _tensors(model).items():
        _require(
            tensor.dtype == torch.float32 or not tensor.is_floating_point(),
            f"prepare gave {name} the dtype {tensor.dtype} in a float32 backbone. Use the backbone's dtype.",
        )
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    _require(not training, f"prepare left {training[:3]} in training mode. Return model.train(backbone.training).")


def check_output_has_hidden_states(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that the prepared model takes the backbone's inputs and returns ``last_hidden_state`` of the same shape."""
    backbone = make_backbone()
    batch = _texts(backbone)
    expected_BLD = backbone(**batch).last_hidden_state
    received_BLD = _prepared(method, make_backbone)(**batch).last_hidden_state
    _require(
        (received_BLD.shape, received_BLD.dtype) == (expected_BLD.shape, expected_BLD.dtype),
        f"last_hidden_state is {received_BLD.dtype} of shape {tuple(received_BLD.shape)}. Expected, as from the "
        f"backbone, {expected_BLD.dtype} of shape {tuple(expected_BLD.shape)}.",
    )


def check_everything_trained_takes_part(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that every trained parameter gets a gradient, and that some gradient is not zero.

    In distributed training every process waits for the gradients of all trained parameters.
    """
    model = _prepared(method, make_backbone)
    gradients = _gradients(model, _texts(make_backbone()))
    missing = sorted(_trained(model).keys() - gradients.keys())
    _require(not missing, f"The forward pass does not use {missing[:3]}. Call requires_grad_(False) on them.")
    _require(any(bool(gradient.any()) for gradient in gradients.values()), "Every gradient is zero.")


def check_only_what_is_trained_changes(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that training changes trained parameters, and no bit of frozen parameters and of buffers.

    Three steps of AdamW with weight decay are trained. An AssertionError names what differs.
    """
    model = _prepared(method, make_backbone)
    trained = _trained(model).keys()
    before = _tensors(model)
    _train(method, model, _texts(make_backbone()))
    after = _tensors(model)
    _require_same_bits(
        {name: tensor for name, tensor in before.items() if name not in trained},
        {name: tensor for name, tensor in after.items() if name not in trained},
        "training changed",
    )
    _require(any(not torch.equal(before[name], after[name]) for name in trained), "Training changed nothing.")


def check_embedding_does_not_depend_on_the_batch(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that a text has the same embedding alone and padded in a batch with longer texts."""
    model, batch = _trained_model(method, make_backbone)
    together_BD = _embed(model, batch)
    for row, length in enumerate(_LENGTHS):
        alone_D = _embed(model, {name: tensor[row : row + 1, :length] for name, tensor in batch.items()})[0]
        _require_close(alone_D, together_BD[row], f"The embedding of a text of {length} tokens depends on the batch")


def check_parameter_groups_hold_what_trains(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that the parameter groups hold every trained parameter once, and no other parameter."""
    model = _prepared(method, make_backbone)
    groups = method.parameter_groups(model)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    _require(len(grouped) == len(set(grouped)), "parameter_groups holds a parameter more than once.")
    _require(
        set(grouped) == {id(parameter) for parameter in _trained(model).values()},
        "parameter_groups must hold exactly the parameters that require a gradient.",
    )
    _require(
        all("lr" not in group for group in groups),
        "parameter_groups sets 'lr', which the schedule overwrites. Set 'lr_scale', a factor on the run's learning "
        "rate.",
    )


def check_default_learning_rate_is_positive(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that the default learning rate is a positive, finite number."""
    rate = method.default_learning_rate(make_backbone())
    _require(0 < rate < math.inf, f"default_learning_rate must be positive and finite, got {rate}.")


def check_trained_parameters_are_all_that_changes(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that the trained parameters, loaded into a freshly prepared backbone, restore the model.

    A checkpoint holds the trained parameters and no other weights.
    """
    model, batch = _trained_model(method, make_backbone)
    state = {name: tensor for name, tensor in model.state_dict().items() if name in _trained(model)}
    restored = _prepared(method, make_backbone)
    unexpected = restored.load_state_dict(state, strict=False).unexpected_keys
    _require(not unexpected, f"The trained parameters {unexpected[:3]} are missing in a freshly prepared backbone.")
    _require(
        torch.equal(_embed(restored, batch), _embed(model, batch)),
        "The trained parameters alone do not restore the model: training changes other tensors too, or prepare draws "
        "random weights without torch's seed.",
    )


def check_gradient_checkpointing_changes_nothing(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that the same parameters get the same gradients when activations are recomputed block by block."""

    def checkpointed() -> PreTrainedModel:
        backbone = make_backbone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # all supported releases know this name of the method
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        # As embedlab loads a backbone: only reentrant checkpointing needs inputs that require a gradient.
        backbone.disable_input_require_grads()
        return backbone

    plain, recomputed = (
        _gradients(_prepared(method, make), _texts(make_backbone())) for make in (make_backbone, checkpointed)
    )
    _require(plain.keys() == recomputed.keys(), "Gradient checkpointing changes which parameters get a gradient.")
    scale = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    error = torch.stack([(recomputed[name] - gradient).norm() for name, gradient in plain.items()]).norm()
    _require(
        bool(error <= _TOLERANCE * scale),
        f"Gradient checkpointing changes the gradient by {float(error / scale):.1e} of its norm.",
    )


def check_merged_is_a_plain_backbone(method: FineTuningMethod, make_backbone: MakeBackbone) -> None:
    """Check that ``merged`` returns a model of the backbone's class with the same embeddings.

    The embeddings must stay the same when the merged model is saved and loaded.
    """
    model, batch = _trained_model(method, make_backbone)
    expected_BD = _embed(model, batch)
    backbone = make_backbone()
    merged = method.merged(model)
    differing = sorted(merged.state_dict().keys() ^ backbone.state_dict().keys())
    _require(
        type(merged) is type(backbone) and not differing,
        f"merged must return a {type(backbone).__name__} with the backbone's own parameters, got a "
        f"{type(merged).__name__} that differs in {differing[:3]}.",
    )
    _require_close(_embed(merged.eval(), batch), expected_BD, "merged changes the embeddings")
    with TemporaryDirectory() as folder:
        merged.save_pretrained(folder)
        foreign = [p.name for p in Path(folder).iterdir() if p.suffix not in (".safetensors", ".json")]
        _require(not foreign, f"Saving the merged model writes {foreign}. Expected safetensors and JSON files only.")
        loaded, report = AutoModel.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
        lost = {problem: names for problem, names in report.items() if names}
        _require(not lost, f"The loaded model differs from the merged model that was saved: {lost}.")
        _require_close(_embed(loaded.eval(), batch), expected_BD, "Saving and loading changes the embeddings")


CHECKS: tuple[Check, ...] = (
    check_options_are_the_schema,
    check_prepare_is_idempotent,
    check_prepare_depends_on_the_seed_alone,
    check_prepare_keeps_dtype_and_mode,
    check_output_has_hidden_states,
    check_everything_trained_takes_part,
    check_only_what_is_trained_changes,
    check_embedding_does_not_depend_on_the_batch,
    check_parameter_groups_hold_what_trains,
    check_default_learning_rate_is_positive,
    check_trained_parameters_are_all_that_changes,
    check_gradient_checkpointing_changes_nothing,
    check_merged_is_a_plain_backbone,
)
"""All checks of the contract, for ``pytest.mark.parametrize``."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _require_close(received: Tensor, expected: Tensor, what: str) -> None:
    error = float((received - expected).abs().max())
    _require(error <= _TOLERANCE, f"{what}: the difference is {error:.1e}, more than {_TOLERANCE:.0e}.")


def _require_same_bits(before: dict[str, Tensor], after: dict[str, Tensor], what: str) -> None:
    names = sorted(before.keys() ^ after.keys())
    names += [name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])]
    _require(not names, f"{what} {names[:3]}{f' and {len(names) - 3} more' if len(names) > 3 else ''}.")


def _prepared(method: FineTuningMethod, make_backbone: MakeBackbone) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prepare_backbone(method, make_backbone())


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter and every buffer, also of buffers that are not saved."""
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def _texts(backbone: PreTrainedModel) -> dict[str, Tensor]:
    """Return random token ids (B, L), padded on the right as embedlab pads texts, and their attention mask (B, L)."""
    generator = torch.Generator().manual_seed(0)
    size = backbone.config.get_text_config().vocab_size
    lengths_B = torch.tensor(_LENGTHS)
    mask_BL = (torch.arange(max(_LENGTHS)) < lengths_B[:, None]).long()
    tokens_BL = torch.randint(size, mask_BL.shape, generator=generator)
    return {"input_ids": tokens_BL.to(backbone.device), "attention_mask": mask_BL.to(backbone.device)}


def _embeddings(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return embeddings (B, D) of unit norm: means over the tokens of each text."""
    mask_BL1 = batch["attention_mask"][..., None]
    hidden_BLD = model(**batch).last_hidden_state
    return normalize((hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1), dim=-1)


def _embed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return _embeddings(model, batch)


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the InfoNCE loss with in-batch negatives at temperature 0.1."""
    queries_BD, documents_BD = _embeddings(model, batch).chunk(2)
    return cross_entropy(queries_BD @ documents_BD.T / 0.1, torch.arange(len(queries_BD), device=queries_BD.device))


def _gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the loss by parameter name, for the parameters that get a gradient."""
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        _loss(model, batch).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _train(method: FineTuningMethod, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Train a model for three steps with a learning rate so large that the changes are visible in float32."""
    optimizer = torch.optim.AdamW(method.parameter_groups(model), lr=1e-2, weight_decay=0.1)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            _loss(model, batch).backward()
            optimizer.step()
    model.eval()


def _trained_model(method: FineTuningMethod, make_backbone: MakeBackbone) -> tuple[nn.Module, dict[str, Tensor]]:
    model = _prepared(method, make_backbone)
    batch = _texts(make_backbone())
    _train(method, model, batch)
    return model, batch
