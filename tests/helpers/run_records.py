"""A run record and a prediction like many others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embedlab.records import LossDefinition, RunRecord
from embedlab.scaling.bootstrap import Interval
from embedlab.search.confirmation import Prediction

DEFINITION = LossDefinition(loss="InfoNCE", temperature=0.05, candidates=256, evaluation_set="arxiv 1a2b")


def record(number: int = 0, **values: Any) -> RunRecord:
    return replace(
        RunRecord(
            run_id=f"run-{number}",
            status="finished",
            backbone="ladder:r0",
            backbone_options={"pooling": "mean"},
            method="LoRA",
            method_options={"rank": 8},
            parameters=281_152,
            nonembedding_parameters=150_080,
            forward_weights=147_456.0,
            backward_weights=147_456.0,
            update_weights=4_096.0,
            tokens=100_000 + number,
            padded_tokens=104_000,
            pairs=2_560,
            unique_pairs=1_280,
            batch_size=128,
            max_length=64,
            learning_rate=3e-3,
            schedule="WarmupCosine",
            seed=0,
            data_hash="3c4d",
            loss_definition=DEFINITION,
            loss=2.5,
            flops_algorithmic=10**11,
            flops_executed=12 * 10**10,
            seconds=12.5,
            device="cpu x 1",
        ),
        **values,
    )


def prediction(**values: Any) -> Prediction:
    return replace(
        Prediction(
            budget=4e9,
            backbone="ladder:r1",
            method="LoRA",
            learning_rate=1e-3,
            tokens=1e6,
            loss=2.0,
            interval_80=Interval(1.9, 2.1),
            interval_95=Interval(1.8, 2.2),
            largest_flops=1e9,
            num_runs=6,
            epochs=1.0,
        ),
        **values,
    )
