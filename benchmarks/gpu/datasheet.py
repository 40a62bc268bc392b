"""What the card's data sheet allows, to hold measured times against."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cdgen.plan import Machine


def card(device: torch.device) -> "Machine | None":
    """The data sheet of the device, or None if it is not known."""
    if device.type != "cuda":
        return None
    from cdgen.plan import GPUS  # imported late, since it imports transformers, which takes seconds

    name = torch.cuda.get_device_name(device).lower()
    return next((sheet for key, sheet in GPUS.items() if key in name), None)


def least_seconds(sheet: "Machine | None", size: float, flops: float) -> float | None:
    """The least time to move `size` bytes and to do `flops` operations in 16-bit products, whichever is longer."""
    return sheet and max(size / sheet.bandwidth, flops / sheet.matmul)
