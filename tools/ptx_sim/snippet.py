"""Run a few lines of hand-written PTX on one CTA, to test single instructions and the interpreter's checks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .launch import Kernel, launch
from .types import Array

_REGISTERS = """
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<16>;
    .reg .b64 %q<16>;"""


def snippet(body: str, inputs: Sequence[Array], outputs: Sequence[Array]) -> Kernel:
    """Return a Kernel with one thread per element.

    Args:
        body: PTX instructions. Registers %a0, %a1, ... hold the inputs, and %d0, %d1, ... are stored at the end. The
            body may use %p, %h, %r and %q registers (predicates, 16, 32 and 64 bits); %r0 is the thread's index, and
            %qa0, %qd0, ... are the addresses of its elements.
        inputs, outputs: NumPy arrays of equal length with elements of 2, 4 or 8 bytes.
    """
    names = [f"a{i}" for i in range(len(inputs))] + [f"d{i}" for i in range(len(outputs))]
    bits = [8 * array.dtype.itemsize for array in (*inputs, *outputs)]
    lines = [_REGISTERS, "    mov.u32 %r0, %tid.x;"]
    for index, (name, width) in enumerate(zip(names, bits, strict=True)):
        lines.append(f"    .reg .b{width} %{name};")
        lines.append(f"    .reg .b64 %q{name};")
        lines.append(f"    ld.param.u64 %q{name}, [snippet_param_{index}];")
        lines.append(f"    mad.wide.u32 %q{name}, %r0, {width // 8}, %q{name};")
        if name.startswith("a"):
            lines.append(f"    ld.global.b{width} %{name}, [%q{name}];")
    lines.append(body)
    for name, width in zip(names, bits, strict=True):
        if name.startswith("d"):
            lines.append(f"    st.global.b{width} [%q{name}], %{name};")
    parameters = ", ".join(f".param .u64 snippet_param_{index}" for index in range(len(names) + 2))
    header = f".visible .entry snippet({parameters})\n.reqntid {len(outputs[0])}\n"
    return Kernel(header + "{\n" + "\n".join(lines) + "\n    ret;\n}\n", "snippet", tuple(names), 4096, 80)


def execute(body: str, inputs: Sequence[Array], output_types: Sequence[Any], **launch_options: Any) -> list[Array]:
    """Run a snippet and return its outputs, one array per NumPy type in `output_types`."""
    inputs = [np.ascontiguousarray(array) for array in inputs]
    outputs = [np.zeros(len(inputs[0]), dtype) for dtype in output_types]
    tensors = [torch.from_numpy(array.view(f"i{array.dtype.itemsize}")) for array in (*inputs, *outputs)]
    names = [f"d{index}" for index in range(len(outputs))]
    launch(snippet(body, inputs, outputs), (1,), *tensors, uninitialised=names, **launch_options)
    return outputs
