"""Random numbers of torch's own generators: kept from the user's, and keyed."""

import torch


def private_noise(device):
    """A context that puts the generators of the CPU and of `device` back as the user had them."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_noise(device, seed):
    """Seed the generator that dropout on `device` draws from, and no other device's, as torch.manual_seed would."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    generator.manual_seed(seed)
