"""Products with linear layers: packed for oneDNN where that is possible, and never with outdated weights."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cdgen.models import products
from cdgen.models.products import Product, can_pack
from cdgen_kernels.checks import FLOAT_DTYPES
from tests.helpers.tiny_models import make_llama

packs = pytest.mark.skipif(not can_pack(torch.zeros(1)), reason="oneDNN does not pack weights for this CPU")


def make_layers(*sizes: int, bias: bool = False, dtype: torch.dtype = torch.float32) -> list[nn.Linear]:
    torch.manual_seed(len(sizes))
    return [nn.Linear(24, size, bias=bias, dtype=dtype) for size in sizes]


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, 24, generator=torch.Generator().manual_seed(rows)).to(dtype)


def check(product: Product, x: torch.Tensor) -> None:
    """Compare with float64."""
    with torch.inference_mode():
        exact = torch.cat([copy.deepcopy(layer).double()(x.double()) for layer in product.layers], 1)
        found = product(x)
    assert found.dtype == x.dtype
    error = 2 * torch.finfo(x.dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=error, atol=error)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(40,), (16, 7, 7)])
def test_outputs_are_adjacent(sizes, bias, packing, dtype, monkeypatch) -> None:
    if not packing:
        monkeypatch.setattr(products, "can_pack", lambda weight: False)
    layers = make_layers(*sizes, bias=bias, dtype=dtype)
    before = [copy.deepcopy(layer.state_dict()) for layer in layers]
    product = Product(*layers)
    for rows in (1, 2, 33):
        check(product, inputs(rows, dtype))
    for layer, state in zip(layers, before, strict=True):
        assert all(torch.equal(x, state[name]) for name, x in layer.state_dict().items())


@pytest.mark.parametrize("missing", ["_linear_pointwise", "_reorder_linear_weight"])
@packs
def test_torch_may_lack_the_ops(missing, monkeypatch) -> None:
    ops = torch.ops.mkldnn
    kept = {"_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"} - {missing}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**{name: getattr(ops, name) for name in kept}))
    check(Product(*make_layers(8)), inputs(3))


def test_what_is_packed(monkeypatch) -> None:
    assert not can_pack(torch.zeros(1, dtype=torch.float16)) and not can_pack(torch.zeros(1, device="meta"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not can_pack(torch.zeros(1))


@packs
@pytest.mark.parametrize("rows", [1, 3])  # unpacked and packed
@pytest.mark.parametrize("change", ["first weight", "last weight", "bias", "replaced", "moved"])
def test_changed_parameters_are_looked_up_again(change, rows) -> None:
    layers = make_layers(8, 8, bias=True)
    product = Product(*layers)
    check(product, inputs(rows))
    with torch.no_grad():
        if change == "replaced":
            layers[0].weight = nn.Parameter(torch.randn(8, 24))
        elif change == "moved":
            layers[1].weight.data = torch.randn(8, 24)
        else:
            {"first weight": layers[0].weight, "last weight": layers[1].weight, "bias": layers[1].bias}[change].add_(1)
    check(Product(*layers), inputs(rows))
    product.refresh()
    check(product, inputs(rows))


@packs
def test_weights_are_packed_once_and_freed_with_their_layer(monkeypatch) -> None:
    packed = []
    pack = torch.ops.mkldnn._reorder_linear_weight.default
    ops = SimpleNamespace(
        _linear_pointwise=torch.ops.mkldnn._linear_pointwise,
        _is_mkldnn_bf16_supported=torch.ops.mkldnn._is_mkldnn_bf16_supported,
        _reorder_linear_weight=SimpleNamespace(default=lambda *given: packed.append(given) or pack(*given)),
    )
    monkeypatch.setattr(torch.ops, "mkldnn", ops)
    before = set(products._PACKED)
    layers = make_layers(8, 8)
    other_tree = copy.deepcopy(layers, {id(x): x for layer in layers for x in layer.parameters()})
    for at, each in enumerate(
        (layers, layers, other_tree)
    ):  # a BAD made from GOOD is another tree over the same parameters
        product = Product(*each)
        for rows in (1, 2):
            check(product, inputs(rows))
        assert len(packed) == min(1, at), "packed before it is needed"
        check(product, inputs(3))
        product.refresh()
        check(product, inputs(3))
    assert len(packed) == 1
    del layers, other_tree, product, each
    assert set(products._PACKED) == before


@packs
@pytest.mark.parametrize("rows", [1, 3])
def test_inference_tensors(rows) -> None:
    with torch.inference_mode():
        layers = make_layers(8)
    check(Product(*layers), inputs(rows))


@packs
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_a_weight_need_not_be_contiguous(rows) -> None:
    layers = make_layers(8, 9)
    for layer in layers:
        layer.weight.data = layer.weight.data.T.contiguous().T
    check(Product(*layers), inputs(rows))


def test_unpacked_parameters_become_views_of_one_tensor(monkeypatch) -> None:
    monkeypatch.setattr(products, "can_pack", lambda weight: False)
    attention = make_llama(0).model.layers[0].self_attn
    layers = attention.q_proj, attention.k_proj, attention.v_proj
    first, second = Product(*layers), Product(*layers)
    storages = {layer.weight.untyped_storage().data_ptr() for layer in layers}
    assert len(storages) == 1 and first._plain[0].data_ptr() == second._plain[0].data_ptr() == min(storages)
