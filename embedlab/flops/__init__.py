"""What training costs: its arithmetic, the observation that it rests on, and its estimates before a run.

The names here are those of the arithmetic, which needs no torch.
"""

from embedlab.flops.arithmetic import FlopProfile, FlopsByLength, WeightsByPass

__all__ = ["FlopProfile", "FlopsByLength", "WeightsByPass"]
