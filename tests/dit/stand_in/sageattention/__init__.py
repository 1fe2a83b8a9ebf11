"""Stands in for SageAttention 2.2 where there is no card: its steps with their checks and layouts, computed by torch.

Written to its sources (core.py, quant.py, triton/quant_per_thread.py, csrc/fused, csrc/qattn for capability 8.9), none
of which is copied. Scales are read by their place in memory, as the kernel reads them, so that what is not laid out as
it should be gives other numbers, or is refused where the package refuses it.
"""

from sageattention.core import sageattn as sageattn
