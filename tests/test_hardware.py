"""What the device at hand offers: free memory, and TF32 while a context lasts."""

from types import SimpleNamespace

import pytest
import torch

from cdgen.hardware import free_memory, free_memory_text, tf32_products

CPU, GPU = torch.device("cpu"), SimpleNamespace(type="cuda")


@pytest.mark.parametrize(("before", "within"), [("highest", "high"), ("high", "high"), ("medium", "medium")])
def test_tf32_lasts_as_long_as_the_context(before, within):
    torch.set_float32_matmul_precision(before)
    try:
        with pytest.raises(ZeroDivisionError), tf32_products(GPU):
            assert torch.get_float32_matmul_precision() == within
            raise ZeroDivisionError
        assert torch.get_float32_matmul_precision() == before
        with tf32_products(CPU):
            assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_newer_setting_of_the_user_stands():
    """Where the two ways of setting the precision are mixed, torch raises."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with tf32_products(GPU):
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_memory_that_torch_keeps_for_reuse_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 33 * 10**9)
    assert free_memory(GPU) == 12 * 10**9 and free_memory(CPU) is None
    assert free_memory_text(torch.device("cuda:1")) == "cuda:1 has 12.00 GB free"
    assert free_memory_text(CPU) == "cpu has not enough memory"
