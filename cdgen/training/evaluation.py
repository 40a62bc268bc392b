"""The loss on the test text, from which perplexity follows."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from cdgen.training.tokens import Pool


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    pool: Pool,
    blocks: int,
    micro_batch_size: int,
    after_micro_batch: Callable[[int, int], None],
) -> float:
    """Return the mean loss per predicted token over the first blocks of a pool; all processes call it together.

    Args:
        accelerator: determines the device and the processes that share the blocks.
        model: a :class:`~cdgen.training.model.SummedLoss`, as accelerate prepared it. It returns to training mode.
        pool: the test text.
        blocks: number of blocks; 0 means one whole pass.
        micro_batch_size: blocks that one process computes at once.
        after_micro_batch: called with the number of finished blocks and the number of all blocks.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    count = min(blocks or pool.blocks, pool.blocks)
    total = torch.zeros((), dtype=torch.float64, device=device)
    model.eval()
    with torch.no_grad():
        for start in range(0, count, micro_batch_size * world):
            own = range(start + rank, min(start + micro_batch_size * world, count), world)
            # A process without blocks of its own computes one as well: sharded models wait for each other.
            batch = torch.from_numpy(np.stack([pool.block(number) for number in own or [0]]))  # [B, T]
            loss = model(batch.to(device))
            total += loss if own else 0
            after_micro_batch(min(start + micro_batch_size * world, count), count)
    model.train()
    summed: float = accelerator.reduce(total).item()
    return summed / (count * (pool.block_size - 1))
