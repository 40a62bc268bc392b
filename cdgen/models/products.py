"""Matrix products with the weights of linear layers. On x86 CPUs, oneDNN computes them from weights in its own layout.

torch computes a float32 product on a CPU with MKL, which is slow on processors of other makers, and a bfloat16 product
with oneDNN from weights in the usual layout. The ops that take weights in oneDNN's layout are those of torch.compile
(`torch._inductor`, with `freezing`). They are private: where torch lacks them, products are torch's linear.

Products of one or two rows take as long as it takes to read the weights. An op of :mod:`cdgen_kernels` reads them in
the usual layout at the speed of memory, which oneDNN does not reach.
"""

import weakref
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

import cdgen_kernels  # noqa: F401, registers linear_rows

_FEW_ROWS = 2  # with more, oneDNN is faster
_ROWS_HINT = 16  # oneDNN chooses the layout for this number of rows; for 16 to 128 the choice is the same


class Product:
    """Computes one linear layer, or several on the same input, whose outputs are adjacent.

    If oneDNN is used, weights are packed at the first call with more than a few rows, once for all products with the
    same parameters; the module keeps its own parameters. Otherwise the parameters become views of one tensor.

    Args:
        layers: linear layers with the same number of inputs. All have a bias, or none.
    """

    def __init__(self, *layers: nn.Linear) -> None:
        self.layers = layers
        self._packed: _Packed | None = None
        self._unpacked: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None  # weights and biases
        weights, biases = _parameters(layers)
        self._plain = None if can_pack(weights[0]) else (_adjacent(weights), _adjacent(biases) if biases else None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs [N, all outputs] for inputs [N, D] with contiguous rows."""
        if self._plain is not None:
            return linear(x, *self._plain)
        product: torch.Tensor
        if len(x) <= _FEW_ROWS:
            if self._unpacked is None:
                weights, biases = ([each.detach().contiguous() for each in kind] for kind in _parameters(self.layers))
                self._unpacked = weights, biases
            product = torch.ops.cdgen.linear_rows.default(x, *self._unpacked)
        else:
            if self._packed is None:
                self._packed = _find_or_pack(self.layers)
            weight, bias = self._packed.weight, self._packed.bias
            product = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return product

    def refresh(self) -> None:
        """Check at the next call whether the parameters have changed since they were packed."""
        self._packed = self._unpacked = None


class _Packed(NamedTuple):
    """A copy of parameters in oneDNN's layout."""

    source: "weakref.ref[torch.Tensor]"  # the first parameter
    state: list[tuple[int, int]]  # see _state, for each parameter
    weight: torch.Tensor
    bias: torch.Tensor | None


_PACKED: dict[int, _Packed] = {}  # by the id of the first parameter; an entry is deleted with that parameter


def can_pack(weight: torch.Tensor) -> bool:
    """Return whether oneDNN computes products with a weight faster than torch's linear does."""
    if weight.device.type != "cpu" or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())


def _parameters(layers: tuple[nn.Linear, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the weights and the biases of layers."""
    return [layer.weight for layer in layers], [layer.bias for layer in layers if layer.bias is not None]


def _find_or_pack(layers: tuple[nn.Linear, ...]) -> _Packed:
    """Return the packed parameters of layers, packed anew if the parameters have changed in place."""
    weights, biases = _parameters(layers)
    key, state = id(weights[0]), [_state(parameter) for parameter in (*weights, *biases)]
    found = _PACKED.get(key)
    if found is None or found.source() is not weights[0] or found.state != state:
        _PACKED.pop(key, None)  # frees its memory before the new copy is made
        source = weakref.ref(weights[0], lambda _: _PACKED.pop(key, None))
        with torch.no_grad():
            whole = weights[0] if len(weights) == 1 else torch.cat(weights)
            weight = torch.ops.mkldnn._reorder_linear_weight.default(whole.detach(), _ROWS_HINT)
            bias = torch.cat(biases) if biases else None
        found = _PACKED[key] = _Packed(source, state, weight, bias)
    return found


def _state(parameter: torch.Tensor) -> tuple[int, int]:
    """Return numbers that change with a parameter's values, unless these are written through `.data`."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


def _adjacent(parameters: list[torch.Tensor]) -> torch.Tensor:
    """Return one tensor of all rows and make the parameters views of it; nothing is copied if they are adjacent."""
    first = parameters[0].data
    rows, end = 0, first.data_ptr()
    for parameter in parameters:
        if not parameter.is_contiguous() or parameter.data_ptr() != end:
            break
        rows, end = rows + len(parameter), end + parameter.nbytes
    else:
        if end - first.data_ptr() <= first.untyped_storage().nbytes() - first.storage_offset() * first.itemsize:
            return first.as_strided((rows, *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, whole.split([len(x) for x in parameters]), strict=True):
        parameter.data = view
    return whole
