"""Lists peak speeds from the manufacturers' data sheets, so that a run can be planned without the device."""

from __future__ import annotations

_A100 = (312e12, 156e12, 19.5e12)
_H100_SXM = (989.4e12, 494.7e12, 66.9e12)
DATA_SHEETS: dict[str, tuple[float, float, float]] = {
    "NVIDIA B200": (2250e12, 1125e12, 75e12),
    "NVIDIA H200": _H100_SXM,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": (756e12, 378e12, 51.2e12),
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L40S": (362e12, 183e12, 91.6e12),
    "NVIDIA L4": (121e12, 60e12, 30.3e12),
    "NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12, 82.6e12),
}
"""Peak FLOP/s of dense matrix products in three types: bfloat16 with float32 accumulation, TF32, and float32.

The key is the device's full name as the driver reports it. Part of a device (MIG) and variants of another speed (NVL,
D, laptop) have longer names, so they never match a key.
"""
