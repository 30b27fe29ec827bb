"""How many FLOPs a second a device could do at most, so that a run can say how much of it is used."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

from embedlab.flops.data_sheets import DATA_SHEETS

_SECONDS = 0.2
_SECONDS_A_TRIAL = 0.03


class Peak(NamedTuple):
    """What a device can do, and how that is known.

    Attributes:
        flops_per_second: of one device.
        source: for people to read.
    """

    flops_per_second: float
    source: str


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of matrix products whose operands have this type.

    From the data sheet where the device is known, else measured here with products of large matrices.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return known_peak(name, dtype) or _measured(device, dtype)


def known_peak(name: str, dtype: torch.dtype) -> Peak | None:
    """The data sheet's number for a device of this name; None if there is none for it.

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


@cache  # a process that trains one run after another measures its device once
def _measured(device: torch.device, dtype: torch.dtype) -> Peak:
    size = 8192 if device.type == "cuda" else 512
    left, right = torch.ones(2, size, size, device=device, dtype=dtype)
    best, begin = 0.0, time.perf_counter()
    while not best or time.perf_counter() - begin < _SECONDS:  # a type that the device emulates is slow
        start, products = time.perf_counter(), 0
        while not products or time.perf_counter() - start < _SECONDS_A_TRIAL:
            product = left @ right
            float(product[0, 0])  # waits for the device
            products += 1
        best = max(best, 2 * size**3 * products / (time.perf_counter() - start))
    name = str(dtype).removeprefix("torch.")
    return Peak(best, f"measured here: products of {size} x {size} matrices in {name}")
