"""Counters of finished programs: the last program to finish merges the results of the others.

That program also resets its counter, so counters are allocated and cleared once per stream, not once per launch.
"""

import torch
import triton
import triton.language as tl

COUNTERS = 1 << 14  # per stream; programs share work only if there are fewer jobs than programs that fit on the device

_UNUSED = -1  # in place of a stream; launches without counters need a valid pointer, and may all have the same one
_buffers: dict[tuple[torch.device, int], torch.Tensor] = {}  # by device and stream, as long as the process lives


@triton.jit
def is_last_to_arrive(arrivals_ptr, programs):
    """Count this program in, and return whether it is the last of the `programs` that share a counter.

    The atomic addition releases what this program wrote and acquires what the others wrote.
    """
    tl.debug_barrier()
    is_last = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel") == programs - 1
    tl.store(arrivals_ptr, 0, mask=is_last)  # for the next launch
    return is_last


def counters(device: torch.device, count: int) -> torch.Tensor:
    """Return zeros, int32 [count or more], for one launch on the current stream of a device.

    Launches on different streams do not share counters. A CUDA graph keeps using those of the streams on which it was
    captured, like their cuBLAS workspaces. Graphs that were captured on the same stream must therefore not be replayed
    concurrently.
    """
    is_cuda = device.type == "cuda"
    stream = torch.cuda.current_stream(device).cuda_stream if is_cuda else 0
    key = device, stream if count else _UNUSED
    if key not in _buffers or count > COUNTERS:
        buffer = torch.zeros(max(count, COUNTERS), dtype=torch.int32, device=device)
        if count > COUNTERS or (is_cuda and torch.cuda.is_current_stream_capturing()):
            return buffer  # a captured tensor belongs to its graph, which clears it in each replay
        _buffers[key] = buffer
    return _buffers[key]
