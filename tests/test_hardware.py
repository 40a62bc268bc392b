"""Free memory of a device, and TF32 within a context."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from cdgen.hardware import free_memory, free_memory_text, tf32_products

CPU, GPU = torch.device("cpu"), SimpleNamespace(type="cuda")


def precisions() -> tuple[str, str, str]:
    """Return the precision of CUDA, of the CPU, and of both, through the two interfaces of torch."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    return *(backend.fp32_precision for backend in backends), torch.get_float32_matmul_precision()


def reset() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """Set torch's precisions to their defaults before and after the test."""
    reset()
    yield
    reset()


def test_tf32_lasts_as_long_as_the_context() -> None:
    with pytest.raises(ZeroDivisionError), tf32_products(GPU):
        assert precisions() == ("tf32", "none", "high")
        assert torch.backends.cuda.matmul.allow_tf32  # the older getters work too
        raise ZeroDivisionError
    assert precisions() == ("none", "none", "highest")
    with tf32_products(CPU):
        assert precisions() == ("none", "none", "highest")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_precision_that_the_user_set_stands(precision) -> None:
    torch.set_float32_matmul_precision(precision)
    before = precisions()
    with tf32_products(GPU):
        assert precisions() == before
    assert precisions() == before


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("backend", [torch.backends, torch.backends.cuda.matmul], ids=["all", "matmul"])
def test_the_newer_setting_of_the_user_stands(backend, precision) -> None:
    backend.fp32_precision = precision
    with tf32_products(GPU):
        assert torch.backends.cuda.matmul.fp32_precision == precision
    assert torch.backends.cuda.matmul.fp32_precision == backend.fp32_precision == precision


def test_contexts_of_several_threads_overlap() -> None:
    """One thread leaves its context while the other still needs the setting."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with tf32_products(GPU):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with tf32_products(GPU):
        thread.start()
        assert inside.wait(30)
    assert precisions() == ("tf32", "none", "high")
    leave.set()
    thread.join()
    assert precisions() == ("none", "none", "highest")


def test_memory_that_torch_keeps_for_reuse_is_free(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 33 * 10**9)
    assert free_memory(GPU) == 12 * 10**9 and free_memory(CPU) is None
    assert free_memory_text(torch.device("cuda:1"), 12 * 10**9) == "cuda:1 has 12.00 GB free"
    assert free_memory_text(CPU, None) == "cpu has not enough memory"
