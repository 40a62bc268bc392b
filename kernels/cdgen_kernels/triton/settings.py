"""Launch settings of the kernels that read rows of logits, in one place. None has been measured on a GPU yet.

Settings are looked up at each launch, here and in the other kernel modules, so a sweep can assign them:
`triton_settings.THREADS = 256`.
"""

from functools import cache
from typing import NamedTuple

import torch

from cdgen_kernels.sampling_tensors import SamplingTensors

THREADS = 128
GROUPS = 4  # of 16 bytes, read by a thread at once
CAPACITY = 256  # tokens of a head that are listed; a longer one takes the path over the whole row
# A program has THREADS * GROUPS * 16 = 8 KiB under way. By Little's law an H100 needs some 18 KiB for each of
# its multiprocessors (3.35 TB/s, 0.7 microseconds), other devices less.
PROGRAMS_PER_MULTIPROCESSOR = 4
MAX_REGISTERS = 128  # lets that many stand on one; without a bound ptxas takes fewer and spills to make room for more
# Pointers that kernels read one element at a time. Alignment does not change their code, but Triton would compile a
# second kernel for addresses that are not multiples of 16, which parts of larger tensors often have.
SCALAR_POINTERS = (
    *SamplingTensors._fields,
    "banned",
    "count",
    "maximum",
    "page_table",
    "cache_row",
    "slot_mapping",
    "target",
)
MULTIPROCESSORS = 132  # of a device that cannot be asked, such as the CPU of a test


def launch_options():
    """What every launch passes to Triton."""
    # Not fused: products and sums round as those of the C++ kernels and of the reference in float32 do.
    options = {"enable_fp_fusion": False}
    if torch.version.hip is None:
        return options | {"num_warps": THREADS // 32, "maxnreg": MAX_REGISTERS}
    return options | {"num_warps": THREADS // 64}


@cache
def multiprocessors(device):
    """How many of them the torch.device has."""
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def compute_capability(device: torch.device) -> int:
    """Major number of an NVIDIA GPU's compute capability, 9 for sm_90; 0 for other devices."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    return torch.cuda.get_device_capability(device)[0]


class Split(NamedTuple):
    """How the rows of a tensor of logits are divided among programs."""

    group: int  # logits in 16 bytes
    chunks: int  # in a row, those of a last, partial tile included
    programs: int  # that share a row
    segment: int  # logits of a row that one of them reads, a multiple of the tile

    def scratch(self, logits):
        """(arrivals, maxima, hits, list_token, list_logit), as the kernels name them."""
        batch = logits.shape[0]
        return (
            logits.new_zeros(batch if self.programs > 1 else 0, dtype=torch.int32),
            logits.new_empty((batch, self.chunks), dtype=torch.float32),
            logits.new_empty((batch, self.chunks), dtype=torch.int32),
            logits.new_empty((batch, CAPACITY), dtype=torch.int32),
            logits.new_empty((batch, CAPACITY), dtype=torch.float32),
        )


def split(logits, vocab_size):
    """The :class:`Split` of logits [B, V'], of which vocab_size are read, over the programs the device has room for."""
    group = 16 // logits.element_size()
    tile = THREADS * group * GROUPS
    tiles = -(-vocab_size // tile)
    room = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(logits.device)
    programs = max(1, min(tiles, room // logits.shape[0]))
    per_program = -(-tiles // programs)
    return Split(group, tiles * THREADS, -(-tiles // per_program), per_program * tile)
