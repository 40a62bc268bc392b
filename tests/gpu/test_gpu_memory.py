"""Memory on the device: a call leaves nothing behind, and a cache that does not fit is an error."""

import gc

import pytest
import torch

from cdgen.errors import InputError
from tests.helpers.gpu_engines import PROMPTS, params


def allocated(device: torch.device) -> int:
    """Return the bytes in tensors on a GPU; 0 on the CPU, where torch does not count them."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device)


@pytest.mark.parametrize("kind", ["checkpoint", "dropout"])
def test_calls_leave_the_memory_as_it_was(setup, kind) -> None:
    """Python's cyclic collector is off. After the first call, libraries may keep workspaces."""
    lm, found = setup.pair(kind), []
    lm.max_num_seqs = 32
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            lm.generate(PROMPTS, params(temperature=1.0, max_tokens=12))
            found.append(allocated(setup.device))
    finally:
        gc.enable()
    assert found[1:] == [found[1]] * 3
    assert found[1] - found[0] < 1 << 20


def test_a_cache_that_does_not_fit_is_an_input_error(setup) -> None:
    lm = setup.pair()
    lm.kv_cache["kv_cache_memory_bytes"] = 10**15
    lm.max_num_seqs = 10**6
    if setup.device.type == "cpu":
        pytest.skip("the CPU overcommits memory: the error would come only when the cache is written")
    with pytest.raises(InputError, match=r"^a cache of .* GB cannot be allocated: cuda:0 has .* GB free; lower"):
        lm.generate([PROMPTS[0]] * 2000, params(n=500, max_tokens=200, temperature=1.0))  # GOOD's keys alone fit no GPU
