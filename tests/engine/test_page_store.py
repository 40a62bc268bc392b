"""Pages of one model: shapes, bytes, copies, and the devices that hold fp8."""

import logging

import pytest
import torch

from cdgen.engine.page_store import CacheShape, PageStore, check_cache_dtype
from cdgen.errors import InputError
from cdgen.models.dtypes import FP8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, FP8], ids=str)
def test_a_store_takes_the_bytes_that_its_shape_states(dtype) -> None:
    shape = CacheShape(num_layers=3, num_kv_heads=2, head_dim=64, dtype=dtype)
    store = PageStore(shape, pages=5, page_size=4, device="cpu")
    assert store.keys.shape == store.values.shape == (3, 5, 2, 4, 64) and store.keys.dtype == dtype
    assert store.nbytes == 5 * 4 * shape.bytes_per_token
    assert all(not tensor.view(torch.uint8).any() for tensor in store.tensors)
    assert (store.key_scales is None) == (store.value_scales is None) == (dtype != FP8)


def test_fp8_takes_16_of_31_of_the_bytes_of_16_bits() -> None:
    narrow, wide = (CacheShape(12, 12, 64, dtype).bytes_per_token for dtype in (FP8, torch.bfloat16))
    assert wide / narrow == pytest.approx(128 / 66)


@pytest.mark.parametrize("dtype", [torch.float32, FP8], ids=str)
def test_layers_are_views_and_copies_reach_all_of_them(dtype) -> None:
    store = PageStore(CacheShape(2, 2, 8, dtype), pages=6, page_size=3, device="cpu")
    for at, layer in enumerate(store.layers):
        for tensor in layer:
            if tensor is not None:
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(at)))
    before = [tensor.clone() for tensor in store.tensors]
    source, target = torch.tensor([0, 0, 4]), torch.tensor([3, 1, 5])
    store.copy_pages(source, target)
    assert len(before) == (4 if dtype == FP8 else 2)
    for tensor, old in zip(store.tensors, before, strict=True):
        tensor, old = tensor.float(), old.float()
        assert old.any() and tensor[:, target].equal(old[:, source]) and tensor[:, [0, 2, 4]].equal(old[:, [0, 2, 4]])


def test_fp8_is_slow_on_a_cpu_and_refused_by_old_gpus(caplog, monkeypatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    check_cache_dtype(None, device)
    check_cache_dtype(torch.bfloat16, torch.device("cpu"))
    assert not caplog.records
    with pytest.raises(InputError, match=r"^kv_cache_dtype = 'fp8': NVIDIA A100 has compute capability 8\.0, and"):
        check_cache_dtype(FP8, device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    check_cache_dtype(FP8, device)
    with caplog.at_level(logging.WARNING, "cdgen"):
        check_cache_dtype(FP8, torch.device("cpu"))
    assert "slow on the CPU" in caplog.text
