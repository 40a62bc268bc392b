"""Launch settings that several kernels share. They have not been measured on a GPU yet.

Settings are looked up at each launch, here and in the other kernel modules, so a sweep can assign them:
`settings.THREADS = 256`.
"""

import re
from functools import cache
from typing import NamedTuple

import torch
import triton

from cdgen_kernels.sampling_tensors import SamplingTensors
from cdgen_kernels.triton import arrivals

THREADS = 128
GROUPS = 4  # 16-byte loads that a thread has in flight
CAPACITY = 256  # entries of a row's list of candidates; more candidates take the path over the whole row
# A program has THREADS * GROUPS * 16 = 8 KiB of loads in flight. By Little's law an H100 needs about 18 KiB per
# multiprocessor (3.35 TB/s, 0.7 microseconds), other devices less.
PROGRAMS_PER_MULTIPROCESSOR = 4
# Programs of attention also have 8 KiB in flight, but fewer warps, and their loads wait for page numbers.
ATTENTION_PROGRAMS_PER_MULTIPROCESSOR = 8
# Lets PROGRAMS_PER_MULTIPROCESSOR programs fit. Without a limit ptxas takes fewer registers and spills, to fit more.
MAX_REGISTERS = 128
# Pointers that kernels read one element at a time. Alignment does not change their code, but Triton would compile a
# second kernel for addresses that are not multiples of 16, which parts of larger tensors often have.
SCALAR_POINTERS = (
    *(f"{name}_ptr" for name in SamplingTensors._fields),
    "banned_ptr",
    "count_ptr",
    "max_ptr",
    "page_table_ptr",
    "cache_row_ptr",
    "shared_lengths_ptr",
    "target_ptr",
)
# With 64 or more rows, sm_90 and later read 16-bit operands through the async proxy. Before 3.7.1, Triton omits the
# fence between pipelined copies and these reads (triton pull request 9610); with a single stage it emits the fence.
ASYNC_ROWS = 64
HAS_FENCE = tuple(map(int, re.findall(r"\d+", triton.__version__)[:3])) >= (3, 7, 1)
MULTIPROCESSORS = 132  # assumed for a device that cannot be asked, such as the CPU in a test


def launch_options() -> dict[str, int | bool]:
    """Return the options that every launch passes to Triton."""
    # Not fused: products and sums round as those of the C++ kernels and of the reference in float32 do.
    options: dict[str, int | bool] = {"enable_fp_fusion": False}
    if torch.version.hip is None:
        return options | {"num_warps": THREADS // 32, "maxnreg": MAX_REGISTERS}
    return options | {"num_warps": THREADS // 64}


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a device."""
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def compute_capability(device: torch.device) -> int:
    """Return the major number of an NVIDIA GPU's compute capability, 9 for sm_90; 0 for other devices."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    return torch.cuda.get_device_capability(device)[0]


class Scratch(NamedTuple):
    """Memory that the programs of one launch share."""

    arrivals: torch.Tensor  # int32 [B or more], zeros; unused if no programs share a row
    maxima: torch.Tensor  # float32 [B, chunks]
    hits: torch.Tensor  # int32 [B, chunks]
    list_token: torch.Tensor  # int32 [B, CAPACITY]
    list_logit: torch.Tensor  # float32 [B, CAPACITY]


class Split(NamedTuple):
    """How the rows of a tensor of logits are divided among programs."""

    group: int  # logits in 16 bytes
    chunks: int  # chunks per row, including those of a last, partial tile
    programs: int  # programs per row
    segment: int  # logits of a row that one program reads, a multiple of the tile

    def scratch(self, logits: torch.Tensor) -> Scratch:
        """Allocate the scratch memory of a launch on logits [B, V']."""
        batch = logits.shape[0]
        return Scratch(
            arrivals.counters(logits.device, batch if self.programs > 1 else 0),
            logits.new_empty((batch, self.chunks), dtype=torch.float32),
            logits.new_empty((batch, self.chunks), dtype=torch.int32),
            logits.new_empty((batch, CAPACITY), dtype=torch.int32),
            logits.new_empty((batch, CAPACITY), dtype=torch.float32),
        )


def split(logits: torch.Tensor, vocab_size: int) -> Split:
    """Divide the first vocab_size entries of logits [B, V'] among as many programs as the device has room for."""
    group = 16 // logits.element_size()
    tile = THREADS * group * GROUPS
    tiles = -(-vocab_size // tile)
    room = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(logits.device)
    programs = max(1, min(tiles, room // logits.shape[0]))
    per_program = -(-tiles // programs)
    return Split(group, tiles * THREADS, -(-tiles // per_program), per_program * tile)
