"""The warp-wide matrix instructions ldmatrix, stmatrix and mma.sync. wgmma and tcgen05 are not implemented.

Products are summed in float64 and rounded once to float32; the order and the narrower sums of real tensor cores are
not modelled. The fragment layouts are those of the PTX manual, section "Warp Level Matrix Multiply-Accumulate
Instructions".
"""

from collections.abc import Callable, Sequence

import numpy as np

from .access import Access
from .errors import InactiveLane
from .lanes import Lanes, Step
from .operands import Op, semantics
from .rounding import decode
from .types import DTYPES, Array, Mask

Place = tuple[Array, Array]  # row and column of each lane's element

_LANE = np.arange(32)
_GROUP, _MEMBER = _LANE // 4, _LANE % 4  # the manual's groupID and threadID_in_group


def _check_whole_warps(lanes: Lanes, mask: Mask) -> None:
    if mask is not None:
        active = mask.reshape(-1, 32)
        partial = active.any(1) != active.all(1)
        if partial.any():
            raise InactiveLane("a matrix instruction executed by part of a warp", 32 * int(partial.argmax()))


def _matrix_access(
    op: Op, address_at: int, registers_at: int
) -> tuple[tuple[str, ...], Callable[[str, Lanes, Mask], Access]]:
    """Compile what ldmatrix and stmatrix share: lane 8 j + r points to row r of matrix j (8 x 8 elements of 16 bits).

    Returns:
        The names of the registers, one per matrix, and a function that returns the Access for (what, lanes, mask).
    """
    op.allow("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", count=2)
    registers, address = op.vector(registers_at), op.address(address_at)
    if not op.has("m8n8") or op.type != "b16" or f"x{len(registers)}" not in op.qualifiers:
        raise op.unknown()

    def access(what: str, lanes: Lanes, mask: Mask) -> Access:
        _check_whole_warps(lanes, mask)
        points = np.arange(lanes.count) % 32 < 8 * len(registers)
        return lanes.access(what, address(lanes), 16, points if mask is None else points & mask)

    return registers, access


@semantics("ldmatrix")
def load_matrices(op: Op) -> Step:
    registers, access_of = _matrix_access(op, 1, 0)
    writers, transposed = [op.writer(text) for text in registers], op.has("trans")

    def step(lanes: Lanes, mask: Mask) -> None:
        access, shared = access_of("load", lanes, mask), lanes.batch.shared
        rows = lanes.spread(access, shared.bytes.load(shared.rows(access), access))
        matrices = rows.view(np.uint16).reshape(-1, 4, 8, 8)  # [warps, matrix, row, column]
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        for number, write in enumerate(writers):
            # Lane 4 g + t holds elements 2 t and 2 t + 1 of row g.
            write(lanes, np.ascontiguousarray(matrices[:, number]).view(np.uint32).reshape(-1), mask)

    return step


@semantics("stmatrix")
def store_matrices(op: Op) -> Step:
    registers, access_of = _matrix_access(op, 0, 1)
    readers, transposed = [op.reader(text, "b32") for text in registers], op.has("trans")

    def step(lanes: Lanes, mask: Mask) -> None:
        access, shared = access_of("store", lanes, mask), lanes.batch.shared
        matrices = np.zeros((lanes.count // 32, 4, 8, 8), np.uint16)
        for number, read in enumerate(readers):
            matrix = read(lanes).view(np.uint16).reshape(-1, 8, 8)
            matrices[:, number] = matrix.swapaxes(1, 2) if transposed else matrix
        rows = matrices.view(np.uint8).reshape(-1, 16)
        shared.bytes.store(shared.rows(access), rows[access.active], access)

    return step


def _fragment(registers: Sequence[Array], places: Sequence[Place], shape: tuple[int, int], name: str) -> Array:
    """Assemble float64 matrices [warps, *shape]; `places` gives the row and column of each register's first element.

    A 32-bit register holds one tf32 number, or two 16-bit numbers that are neighbours along the second axis of `shape`.
    """
    warps = registers[0].size // 32
    matrix = np.empty((warps, *shape), np.float64)
    for register, (row, column) in zip(registers, places, strict=True):
        if name == "tf32":
            matrix[:, row, column] = decode(register, name).reshape(warps, 32)
        else:
            pair = decode(register.view(np.uint16), name).reshape(warps, 32, 2)
            matrix[:, row, column] = pair[..., 0]
            matrix[:, row, column + 1] = pair[..., 1]
    return matrix


_DEPTHS = {("m16n8k16", "f16"): 16, ("m16n8k16", "bf16"): 16, ("m16n8k8", "f16"): 8, ("m16n8k8", "bf16"): 8}
_DEPTHS["m16n8k8", "tf32"] = 8


@semantics("mma")
def multiply_matrices(op: Op) -> Step:
    shape, name = op.one_of([shape for shape, _ in _DEPTHS]), op.qualifiers[-2]
    depth = _DEPTHS.get((shape, name))
    if depth is None or op.qualifiers != ["sync", "aligned", shape, "row", "col", "f32", name, name, "f32"]:
        raise op.unknown()
    a, b = ([op.reader(text, "b32") for text in op.vector(index)] for index in (1, 2))
    c = [op.reader(text, "f32") for text in op.vector(3)]
    writers = [op.writer(text) for text in op.vector(0)]
    step_of_register = 4 if name == "tf32" else 8
    along = _MEMBER if name == "tf32" else 2 * _MEMBER
    starts = range(0, depth, step_of_register)
    a_places = [(_GROUP + half, along + start) for start in starts for half in (0, 8)]
    b_places = [(_GROUP, along + start) for start in starts]  # in B transposed, [n, k]
    c_places = [(_GROUP + half, 2 * _MEMBER + odd) for half in (0, 8) for odd in (0, 1)]

    def step(lanes: Lanes, mask: Mask) -> None:
        _check_whole_warps(lanes, mask)
        left = _fragment([read(lanes) for read in a], a_places, (16, depth), name)
        right = _fragment([read(lanes) for read in b], b_places, (8, depth), name)
        product = left @ right.swapaxes(1, 2)
        for write, read, (row, column) in zip(writers, c, c_places, strict=True):
            total = product[:, row, column].reshape(-1) + read(lanes)
            write(lanes, total.astype(DTYPES["f32"]), mask)

    return step
