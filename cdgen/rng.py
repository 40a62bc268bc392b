"""torch's own random number generators: their state is restored for the user, and they can be seeded per device."""

from contextlib import AbstractContextManager

import torch


def private_noise(device: torch.device) -> AbstractContextManager[None]:
    """Return a context that restores the state of torch's generators on the CPU and on `device` when it ends."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_noise(device: torch.device, seed: int) -> None:
    """Seed the generator of `device` for dropout; torch.manual_seed would seed those of all devices."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    generator.manual_seed(seed)
