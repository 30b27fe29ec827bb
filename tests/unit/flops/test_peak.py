"""A device's peak is its data sheet's, or what was measured on it."""

from __future__ import annotations

import pytest
import torch

from embedlab.flops.peak import device_peak, known_peak


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H200", torch.float16, 989.4e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", torch.bfloat16, 312e12),
        ("NVIDIA B200", torch.bfloat16, 2250e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
    ],
)
def test_known_devices_have_their_data_sheets_peak(name: str, dtype: torch.dtype, peak: float) -> None:
    known = known_peak(name, dtype)
    assert known is not None and known.flops_per_second == peak


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA L40",
        "NVIDIA A1000",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "AMD Instinct MI300X",
    ],
)
def test_an_unknown_device_has_none(name: str) -> None:
    assert known_peak(name, torch.bfloat16) is None


def test_tf32_is_what_float32_means_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    known = known_peak("NVIDIA A100-SXM4-80GB", torch.float32)
    assert known is not None and known.flops_per_second == 156e12


def test_the_cpus_peak_is_measured() -> None:
    peak = device_peak(torch.device("cpu"), torch.float32)
    assert peak.source.startswith("measured here") and 1e8 < peak.flops_per_second < 1e14
