"""Compilation of one instruction: its checked qualifiers, and functions that read and write its operands.

An operand is compiled once, to a function of the running `Lanes` (lanes.py). Register arrays are never written in
place, so a value read from one register may be stored in another without a copy.
"""

import re
from collections.abc import Callable, Collection

import numpy as np

from .errors import UnknownOpcode
from .lanes import Lanes, Read, Step, Write
from .parser import Instruction, Program, split_operands
from .types import DTYPES, UNSIGNED, Array, Mask, bits_type, resize

_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)U?")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_SPECIAL = {"%tid.x", "%ntid.x", "%laneid"} | {f"%{which}.{axis}" for which in ("ctaid", "nctaid") for axis in "xyz"}
_ZERO = {"%tid.y", "%tid.z"}
_ONE = {"%ntid.y", "%ntid.z"}
# Symbols of dynamic shared memory and of a thread's stack. Both start at address 0 of their own space.
_SPACE_STARTS = ("global_smem", "__local_depot")


class Op:
    """An instruction being compiled."""

    def __init__(self, instruction: Instruction, program: Program) -> None:
        self.instruction = instruction
        self.program = program
        self.operands = instruction.operands
        self.qualifiers = instruction.qualifiers
        self.type = self.qualifiers[-1] if self.qualifiers else ""

    def has(self, *qualifiers: str) -> bool:
        return any(qualifier in self.qualifiers for qualifier in qualifiers)

    def one_of(self, choices: Collection[str], default: str = "") -> str:
        """Return the first qualifier that is among `choices`, or `default`."""
        return next((qualifier for qualifier in self.qualifiers if qualifier in choices), default)

    def allow(self, *known: str, count: int | tuple[int, ...] | None = None) -> None:
        """Raise UnknownOpcode for any qualifier that is neither known nor the type, so that none is silently ignored.

        `count` is the permitted number of operands, or several such numbers.
        """
        for qualifier in self.qualifiers:
            if qualifier != self.type and qualifier not in known:
                raise self.unknown(f"qualifier .{qualifier}")
        if count is not None and len(self.operands) not in (count if isinstance(count, tuple) else (count,)):
            raise self.unknown(f"form with {len(self.operands)} operands")

    def unknown(self, what: str = "opcode") -> UnknownOpcode:
        return UnknownOpcode(f"unknown {what}: {self.instruction.opcode}")

    def typed(self) -> str:
        """Return the instruction's type, which must be known."""
        if self.type not in DTYPES:
            raise self.unknown(f"type .{self.type}")
        return self.type

    # ---- reading

    def source(self, index: int, type_: str) -> Read:
        return self.reader(self.operands[index], type_)

    def sources(self, type_: str, start: int = 1, stop: int | None = None) -> list[Read]:
        return [self.reader(text, type_) for text in self.operands[start:stop]]

    def reader(self, text: str, type_: str) -> Read:
        """Return a function of the lanes that returns the operand as an array of the NumPy type of `type_`."""
        dtype = np.dtype(DTYPES[type_])
        if text.startswith("!"):
            positive = self.reader(text[1:], type_)
            return lambda lanes: ~positive(lanes)
        if text in _SPECIAL:
            return lambda lanes: resize(lanes.special(text), dtype.itemsize).view(dtype)
        if text in _ZERO | _ONE:
            return self._constant(int(text in _ONE), dtype)
        if text.startswith(_SPACE_STARTS):
            return self._constant(0, dtype)
        if text in self.program.symbols:
            return self._constant(self.program.symbols[text], dtype)
        if _INTEGER.fullmatch(text):
            return self._constant(int(text.rstrip("U"), 0), dtype)
        if found := re.fullmatch(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})", text):
            return self._constant(int(found.group(1), 16), dtype)
        if dtype == np.bool_:
            self._expect_register(text, "pred")
            return lambda lanes: lanes.registers[text]
        width = np.dtype(DTYPES[self._expect_register(text)]).itemsize
        if width == dtype.itemsize:
            return lambda lanes: lanes.registers[text].view(dtype)
        return lambda lanes: resize(lanes.registers[text], dtype.itemsize).view(dtype)

    def _expect_register(self, text: str, expected: str | None = None) -> str:
        kind = self.program.register_type(text)
        if expected is not None and kind != expected:
            raise self.unknown(f"use of the .{kind} register {text}")
        return kind

    @staticmethod
    def _constant(value: int, dtype: np.dtype) -> Read:
        if dtype == np.bool_:
            scalar = np.bool_(value)
        else:
            unsigned = UNSIGNED[dtype.itemsize]
            scalar = unsigned(value & (2 ** (8 * dtype.itemsize) - 1)).view(dtype)
        cache: dict[int, Array] = {}

        def read(lanes: Lanes) -> Array:
            if lanes.count not in cache:
                cache[lanes.count] = np.full(lanes.count, scalar)
            return cache[lanes.count]

        return read

    def address(self, index: int) -> Read:
        """Return a function of the lanes that returns the address `[register + offset]` as uint64."""
        found = _ADDRESS.fullmatch(self.operands[index])
        if not found:
            raise self.unknown(f"address {self.operands[index]}")
        base, offset = found.group(1), int(found.group(2) or "0", 0)
        width = 8 if base.startswith(_SPACE_STARTS) else np.dtype(DTYPES[self._expect_register(base)]).itemsize
        read = self.reader(base, f"u{8 * width}")
        step = UNSIGNED[width](offset & (2 ** (8 * width) - 1))
        return lambda lanes: (read(lanes) + step).astype(np.uint64)

    # ---- writing

    def target(self, index: int = 0) -> Write:
        return self.writer(self.operands[index])

    def writer(self, text: str) -> Write:
        """Return a function of (lanes, values, mask) that sets the register in the lanes of the mask."""
        if text == "_":
            return lambda lanes, values, mask: None
        width = np.dtype(DTYPES[self._expect_register(text)]).itemsize
        is_predicate = self._expect_register(text) == "pred"
        unsigned = np.bool_ if is_predicate else UNSIGNED[width]

        def write(lanes: Lanes, values: Array, mask: Mask) -> None:
            if not is_predicate:
                if values.dtype.itemsize != width:
                    values = resize(values, width)
                values = values.view(unsigned)
            if mask is not None:
                old = lanes.registers[text] if text in lanes.registers else lanes.registers.undefined(text)
                values = np.where(mask, values, old)
            lanes.registers[text] = values

        return write

    def vector(self, index: int) -> tuple[str, ...]:
        """Return the members of `{a, b, c}`, or the operand itself."""
        text = self.operands[index]
        return split_operands(text[1:-1]) if text.startswith("{") else (text,)

    # ---- whole instructions

    def compute(self, function: Callable[..., Array], *readers: Read, target: int = 0) -> Step:
        """Return the most common step: read the sources, apply the function, write the target."""
        write = self.target(target)

        if len(readers) == 1:
            (only,) = readers
            return lambda lanes, mask: write(lanes, function(only(lanes)), mask)
        if len(readers) == 2:
            first, second = readers
            return lambda lanes, mask: write(lanes, function(first(lanes), second(lanes)), mask)
        return lambda lanes, mask: write(lanes, function(*[read(lanes) for read in readers]), mask)

    def same_width(self) -> str:
        """Return the untyped type of the same width as this instruction's type."""
        return bits_type(self.typed())


# ---- the table of opcodes

Builder = Callable[[Op], Step]
BUILDERS: dict[str, Builder] = {}


def semantics(*families: str) -> Callable[[Builder], Builder]:
    """Register a function from an Op to a step for the opcodes whose first part is one of `families`."""

    def register(builder: Builder) -> Builder:
        for family in families:
            if family in BUILDERS:
                raise ValueError(f"{family} has two definitions")
            BUILDERS[family] = builder
        return builder

    return register


def compile_instruction(instruction: Instruction, program: Program) -> Step:
    """Return the step that executes an instruction."""
    builder = BUILDERS.get(instruction.family)
    try:
        if builder is None:
            raise UnknownOpcode(f"unknown opcode: {instruction.opcode}")
        return builder(Op(instruction, program))
    except UnknownOpcode as fault:
        raise fault.locate(instruction, "before the launch") from None
