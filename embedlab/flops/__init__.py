"""Counts and estimates the cost of training: FLOPs, memory, and the peak speed of devices.

This package exports the names of ``embedlab.flops.arithmetic``, the part that needs no torch.
"""

from embedlab.flops.arithmetic import FlopProfile, FlopsByLength, WeightsByPass

__all__ = ["FlopProfile", "FlopsByLength", "WeightsByPass"]
