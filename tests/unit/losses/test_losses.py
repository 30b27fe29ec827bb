"""The closed forms are the gradients of the losses as they are defined, for any chunking and over ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from embedlab.errors import ConfigError, DataError, PluginError
from embedlab.losses import AllPairsInfoNCE, Block, ContrastiveLoss, InfoNCE, PairRows
from helpers.losses import each_loss, make_batch, make_embeddings, relative_error


class Definition:
    """The losses as the literature writes them, one pair and one candidate at a time."""

    def __init__(self, embeddings: Tensor, rows: PairRows, log_scale: Tensor, mask: bool, margin: float | None) -> None:
        self.cosines = embeddings @ embeddings.T
        self.scale = log_scale.exp()
        self.queries, self.positives = rows.queries_P.tolist(), rows.positives_P.tolist()
        self.negatives, self.hashes = rows.negatives_N.tolist(), rows.text_hashes_U.tolist()
        self.mask, self.margin = mask, margin

    def kept(self, pair: int, anchor: int, partner: int, candidate: int, its_partner: int | None) -> bool:
        if self.mask:
            known = {self.hashes[anchor], self.hashes[partner]}
            if self.hashes[candidate] in known:
                return False
            if its_partner is not None and self.hashes[its_partner] == self.hashes[anchor]:
                return False
        own = self.cosines[self.queries[pair], self.positives[pair]]
        return self.margin is None or bool(self.cosines[anchor, candidate] <= own + self.margin)

    def own(self, pair: int) -> Tensor:
        return self.scale * self.cosines[self.queries[pair], self.positives[pair]]

    def against(self, pair: int, anchors: list[int], candidates: list[int]) -> list[Tensor]:
        """Scores of one pair's anchor with the texts of all other pairs on one side."""
        sides = [self.queries, self.positives]
        partner_of_anchor, partners = (sides[side is self.queries] for side in (anchors, candidates))
        anchor, partner = anchors[pair], partner_of_anchor[pair]
        return [
            self.scale * self.cosines[anchor, candidate]
            for other, (candidate, its_partner) in enumerate(zip(candidates, partners, strict=True))
            if other != pair and self.kept(pair, anchor, partner, candidate, its_partner)
        ]

    def hard(self, pair: int) -> list[Tensor]:
        """Scores of one pair's query with all hard negatives."""
        query, positive = self.queries[pair], self.positives[pair]
        return [
            self.scale * self.cosines[query, negative]
            for negative in self.negatives
            if self.kept(pair, query, positive, negative, None)
        ]

    def terms(self, name: str, pair: int) -> list[tuple[int, list[Tensor]]]:
        """For each softmax, how often the pair's own score is in it, and its negatives."""
        q, d = self.queries, self.positives
        documents = self.against(pair, q, d) + self.hard(pair)
        if name == "InfoNCE":
            return [(1, documents)]
        if name == "SymmetricInfoNCE":
            return [(1, documents), (1, self.against(pair, d, q))]
        if name == "AllPairsInfoNCE":
            others = [s for a, c in ((q, q), (d, q), (d, d)) for s in self.against(pair, a, c)]
            return [(2, documents + others)]
        raise NotImplementedError(f"{name} is new: write its definition here")

    def loss(self, name: str) -> tuple[Tensor, float]:
        pairs = range(len(self.queries))
        terms = [(self.own(pair), *term) for pair in pairs for term in self.terms(name, pair)]
        values = [torch.logsumexp(torch.stack([own] * times + rest), 0) - own for own, times, rest in terms]
        return torch.stack(values).mean(), sum(len(rest) for _, _, rest in terms) / len(terms)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, PairRows]:
    """Batches in which a text may be a query here and a document there, or may stand in several rows."""
    num_texts, dim = draw(st.integers(2, 12)), draw(st.integers(2, 6))
    row = st.integers(0, num_texts - 1)
    num_pairs = draw(st.integers(1, 6))
    queries, positives = (draw(st.lists(row, min_size=num_pairs, max_size=num_pairs)) for _ in range(2))
    negatives = draw(st.lists(row, max_size=5))
    assume(num_pairs + len(negatives) > 1)
    hashes = draw(st.one_of(st.just(list(range(num_texts))), st.lists(row, min_size=num_texts, max_size=num_texts)))
    embeddings = make_embeddings(num_texts, dim, draw(st.integers(0, 1000)))
    return embeddings, PairRows(
        *(torch.tensor(values, dtype=torch.int64) for values in (queries, positives, negatives, hashes))
    )


@each_loss
@settings(deadline=None, max_examples=150)
@given(
    batch=batches(),
    temperature=st.sampled_from([0.025, 0.3]),
    mask=st.booleans(),
    margin=st.sampled_from([None, 0.07, -0.13]),
    rows_per_chunk=st.integers(1, 7),
)
def test_the_closed_form_is_the_gradient_of_the_definition(
    cls: type[ContrastiveLoss],
    batch: tuple[Tensor, PairRows],
    temperature: float,
    mask: bool,
    margin: float | None,
    rows_per_chunk: int,
) -> None:
    embeddings, rows = batch
    loss = cls(
        temperature=temperature, mask_identical=mask, false_negative_margin=margin, rows_per_chunk=rows_per_chunk
    )
    result = loss.gradient(embeddings, rows)

    leaf, log_scale = embeddings.clone().requires_grad_(), loss.log_scale.clone().requires_grad_()
    expected, num_candidates = Definition(leaf, rows, log_scale, mask, margin).loss(cls.__name__)
    expected.backward()
    assert leaf.grad is not None and log_scale.grad is not None
    torch.testing.assert_close(result.loss, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.log_scale, log_scale.grad, rtol=1e-10, atol=1e-12)
    assert relative_error(result.embeddings_UD, leaf.grad) <= 1e-10
    assert result.num_candidates == pytest.approx(num_candidates)


@each_loss
@pytest.mark.parametrize("rows_per_chunk", [1, 37, 64, 1000])
def test_chunking_changes_nothing(cls: type[ContrastiveLoss], rows_per_chunk: int) -> None:
    embeddings, rows = make_batch(100, 23, dim=16)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        whole = cls().gradient(embeddings.to(dtype), rows)
        chunked = cls(rows_per_chunk=rows_per_chunk).gradient(embeddings.to(dtype), rows)
        assert relative_error(chunked.embeddings_UD, whole.embeddings_UD) <= tolerance
        assert relative_error(chunked.loss, whole.loss) <= tolerance
        assert chunked.num_candidates == whole.num_candidates


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (list, tuple)) else [output]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return output


@each_loss
def test_no_tensor_is_larger_than_a_chunk_of_scores(cls: type[ContrastiveLoss]) -> None:
    embeddings, rows = make_batch(256, 64, dim=4)
    rows = PairRows(rows.queries_P, rows.positives_P, rows.negatives_N, rows.text_hashes_U // 2)
    with LargestTensor() as largest:
        cls(rows_per_chunk=8, false_negative_margin=0.1).gradient(embeddings, rows)
    assert largest.numel <= 8 * (4 * 256 + 64)


ST_OPTIONS = {
    "InfoNCE": {"directions": ("query_to_doc",), "partition_mode": "joint"},
    "SymmetricInfoNCE": {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    "AllPairsInfoNCE": {
        "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        "partition_mode": "joint",
    },
}


@each_loss
def test_sentence_transformers_computes_the_same(cls: type[ContrastiveLoss]) -> None:
    # Imported here, since the processes of the distributed test import this module and have no need of it.
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    theirs = MultipleNegativesRankingLoss(model=None, scale=20.0, **ST_OPTIONS[cls.__name__])
    # With hard negatives the all-pairs losses differ: theirs contrasts them with other queries' positives too.
    for negatives_per_query in [0] if cls is AllPairsInfoNCE else [0, 2]:
        embeddings, rows = make_batch(9, 9 * negatives_per_query)
        ours = cls(temperature=0.05).gradient(embeddings, rows)
        leaf = embeddings.clone().requires_grad_()
        expected = theirs.compute_loss_from_embeddings(list(leaf.split(9)), None)
        expected.backward()
        torch.testing.assert_close(ours.loss, expected.detach(), rtol=1e-12, atol=0)
        # Theirs normalizes, so its gradient lies in the tangent space of the sphere.
        radial = (ours.embeddings_UD * embeddings).sum(dim=1, keepdim=True) * embeddings
        torch.testing.assert_close(ours.embeddings_UD - radial, leaf.grad, rtol=1e-9, atol=1e-14)


def test_a_new_loss_is_a_class_that_states_its_terms() -> None:
    class PositivesOnly(ContrastiveLoss):
        terms = ((Block("queries", "positives"),),)

    embeddings, rows = make_batch(5, 3)
    without = PairRows(rows.queries_P, rows.positives_P, rows.negatives_N[:0], rows.text_hashes_U)
    received, expected = PositivesOnly().gradient(embeddings, rows), InfoNCE().gradient(embeddings, without)
    assert torch.equal(received.loss, expected.loss)
    assert torch.equal(received.embeddings_UD, expected.embeddings_UD)


def test_the_order_of_blocks_does_not_matter() -> None:
    class Reversed(ContrastiveLoss):
        terms = (AllPairsInfoNCE.terms[0][::-1],)

    batch = make_batch(5, 3)
    received, expected = Reversed().gradient(*batch), AllPairsInfoNCE().gradient(*batch)
    torch.testing.assert_close(received.loss, expected.loss, rtol=1e-12, atol=0)
    assert relative_error(received.embeddings_UD, expected.embeddings_UD) <= 1e-12


def test_a_term_without_the_pairs_own_score_is_refused() -> None:
    class Repulsion(ContrastiveLoss):
        terms = ((Block("queries", "queries"),),)

    with pytest.raises(PluginError, match="Repulsion"):
        Repulsion()


@each_loss
def test_half_precision_and_autocast_do_not_lower_the_precision(cls: type[ContrastiveLoss]) -> None:
    embeddings, rows = make_batch(20, 7)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = embeddings.to(dtype)
        expected = cls().gradient(rounded.float(), rows)
        with torch.autocast("cpu", torch.bfloat16):
            received = cls().gradient(rounded, rows)
        assert received.loss.dtype == received.embeddings_UD.dtype == torch.float32
        assert torch.equal(received.loss, expected.loss)
        assert torch.equal(received.embeddings_UD, expected.embeddings_UD)


@each_loss
def test_a_very_low_temperature_gives_finite_numbers(cls: type[ContrastiveLoss]) -> None:
    embeddings, rows = make_batch(6)
    embeddings[rows.positives_P] = -embeddings[rows.queries_P]
    result = cls(temperature=1e-4).gradient(embeddings.float(), rows)
    assert torch.isfinite(result.loss) and torch.isfinite(result.embeddings_UD).all()
    assert result.loss > 1e3


@each_loss
def test_no_graph_is_built(cls: type[ContrastiveLoss]) -> None:
    embeddings, rows = make_batch(4)
    result = cls(learnable_temperature=True).gradient(embeddings.requires_grad_(), rows)
    assert not any(value.requires_grad for value in (result.loss, result.embeddings_UD, result.log_scale))
    assert embeddings.grad is None


def test_a_fixed_temperature_survives_a_cast_of_the_module() -> None:
    loss = InfoNCE(temperature=0.025).to(torch.bfloat16)
    assert not list(loss.parameters()) and not loss.state_dict()
    assert math.exp(-loss.log_scale) == pytest.approx(0.025, rel=1e-12)


def test_a_learnable_temperature_is_a_parameter_that_stops_at_a_hundredth() -> None:
    embeddings, rows = make_batch(4)
    loss = InfoNCE(learnable_temperature=True)
    assert dict(loss.named_parameters()).keys() == {"log_scale"}
    with torch.no_grad():
        loss.log_scale.fill_(math.log(250))
    received = loss.gradient(embeddings, rows)
    assert loss.log_scale.item() == pytest.approx(math.log(100))
    assert received.loss.item() == pytest.approx(InfoNCE(temperature=0.01).gradient(embeddings, rows).loss.item())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.0}, "0.0"),
        ({"temperature": -1.0}, "-1.0"),
        ({"temperature": math.nan}, "nan"),
        ({"temperature": 0.005, "learnable_temperature": True}, "0.005"),
        ({"false_negative_margin": math.inf}, "inf"),
        ({"rows_per_chunk": 0}, "0"),
    ],
)
def test_an_option_that_cannot_work_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}.*{named}"):
        InfoNCE(**options)


@each_loss
def test_a_single_pair_has_nothing_to_contrast_with(cls: type[ContrastiveLoss]) -> None:
    with pytest.raises(DataError, match="nothing to contrast with"):
        cls().gradient(*make_batch(1))
    cls().gradient(*make_batch(1, 1))
