"""Determines the peak FLOP/s of a device, so that a run can report which share of them it uses."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

from embedlab.flops.data_sheets import DATA_SHEETS

_SECONDS = 0.2
_SECONDS_A_TRIAL = 0.03


class Peak(NamedTuple):
    """Peak speed of a device, and where the number comes from.

    Attributes:
        flops_per_second: Peak FLOP/s of one device.
        source: Readable description of where the number comes from.
    """

    flops_per_second: float
    source: str


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the peak speed of matrix products whose operands have the type ``dtype``.

    The number comes from the data sheet of a known device, or else from a measurement with products of large matrices.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return known_peak(name, dtype) or _measured(device, dtype)


def known_peak(name: str, dtype: torch.dtype) -> Peak | None:
    """Return the peak speed that the data sheet of a device states. None if no data sheet is known for it.

    Args:
        name: Full name of the device, as the driver reports it.
        dtype: Type of the operands. float32 means TF32 unless torch's float32 matmul precision is ``highest``.

    >>> known_peak("NVIDIA A100-SXM4-80GB", torch.bfloat16)
    Peak(flops_per_second=312000000000000.0, source='data sheet of NVIDIA A100-SXM4-80GB, bfloat16')
    """
    if name not in DATA_SHEETS:
        return None
    in_bfloat16, in_tf32, in_float32 = DATA_SHEETS[name]
    if dtype in (torch.bfloat16, torch.float16):
        return Peak(in_bfloat16, f"data sheet of {name}, bfloat16")
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return Peak(in_tf32, f"data sheet of {name}, TF32")
    if dtype == torch.float32:
        return Peak(in_float32, f"data sheet of {name}, float32")
    return None


@cache  # so that a process that trains several runs measures its device only once
def _measured(device: torch.device, dtype: torch.dtype) -> Peak:
    size = 8192 if device.type == "cuda" else 512
    left, right = torch.ones(2, size, size, device=device, dtype=dtype)
    best, begin = 0.0, time.perf_counter()
    while not best or time.perf_counter() - begin < _SECONDS:  # one trial at least, since an emulated type is slow
        start, products = time.perf_counter(), 0
        while not products or time.perf_counter() - start < _SECONDS_A_TRIAL:
            product = left @ right
            float(product[0, 0])  # waits for the device
            products += 1
        best = max(best, 2 * size**3 * products / (time.perf_counter() - start))
    name = str(dtype).removeprefix("torch.")
    return Peak(best, f"measured here: products of {size} x {size} matrices in {name}")
