"""Parse the PTX that LLVM emits for one Triton kernel: parameters, registers, labels and instructions.

There must be one entry function without calls. Debug sections are skipped.
"""

import re
from dataclasses import dataclass, field

from .errors import UnknownOpcode

_LABEL = re.compile(r"\s*([$\w]+):")
_GUARD = re.compile(r"@(!?)([%\w]+)\s+(.*)", re.S)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_CONSTANT = re.compile(r"^\.global\s[^;]*?\.b8\s+([$\w]+)\[\d+\]\s*=\s*\{([^}]*)\}", re.M)
_LOC = re.compile(r"\s*\.loc\s.*//\s*(\S+)")
_REGISTER = re.compile(r"%\w+")
_UNDEFINED = re.compile(r"\s*// implicit-def: [$%](\w+)")


@dataclass(frozen=True)
class Instruction:
    opcode: str  # includes the qualifiers: "ld.global.v4.b32"
    operands: tuple[str, ...]
    guard: str | None  # the predicate register of "@%p1" or "@!%p1"
    guard_is_negated: bool
    text: str
    line: int  # PTX line, starting at 1
    source: str  # "kernels.py:12:5", or empty if the PTX has no line information

    @property
    def family(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def qualifiers(self) -> list[str]:
        return self.opcode.split(".")[1:]


@dataclass
class Program:
    """A parsed entry function."""

    name: str = ""
    parameters: list[str] = field(default_factory=list)  # PTX types, in order
    threads: int = 0  # threads per CTA
    local_bytes: int = 0  # size of a thread's stack
    register_types: dict[str, str] = field(default_factory=dict)  # PTX type by prefix ("%r<" -> "b32") or full name
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of an instruction by label
    constants: dict[str, bytes] = field(default_factory=dict)  # module-level data by name
    symbols: dict[str, int] = field(default_factory=dict)  # device address of each constant, set by the launch
    maybe_undefined: set[str] = field(default_factory=set)  # registers that may be read before they are written
    swapped: set[tuple[str, ...]] = field(default_factory=set)  # (address, compared register) of compare-and-swaps

    def register_type(self, name: str) -> str:
        try:
            return self.register_types.get(name) or self.register_types[name.rstrip("0123456789") + "<"]
        except KeyError:
            raise UnknownOpcode(f"operand {name} is not a declared register") from None


def split_operands(text: str) -> tuple[str, ...]:
    """Split at the commas outside braces and brackets."""
    parts: list[str] = []
    depth, current = 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        parts.append(current.strip())
    return tuple(parts)


def parse(ptx: str) -> Program:
    """Parse the entry function of a PTX text. Raises UnknownOpcode for what the interpreter does not implement."""
    program = Program()
    header, body, body_line = _split_entry(ptx)
    if found := re.search(r"\.entry\s+(\w+)", header):
        program.name = found.group(1)
    program.parameters = re.findall(r"\.param\s+\.(\w+)", header)
    if not (threads := re.search(r"\.reqntid\s+(\d+)", header)):
        raise UnknownOpcode("an entry function without .reqntid")
    program.threads = int(threads.group(1))
    for name, values in _CONSTANT.findall(ptx):
        program.constants[name] = bytes(int(value) for value in values.split(","))
    source, pending, pending_line = "", "", 0
    for number, line in enumerate(body.splitlines(), body_line):
        if found := _LOC.match(line):
            source = found.group(1)
        if found := _UNDEFINED.match(line):
            program.maybe_undefined.add("%" + found.group(1))
        line = line.partition("//")[0]
        if not pending.strip():
            if line.split()[:1] in ([".loc"], [".file"]):
                continue
            pending_line = number
        *statements, rest = (pending + line).split(";")
        for statement in statements:
            _statement(program, statement, pending_line, source)
            pending_line = number
        # A label has no semicolon, and a brace that opens a scope of inline assembly is on a line of its own.
        pending = _take_labels(program, rest).strip().removeprefix("{").removeprefix("}") + " "
    program.maybe_undefined |= _undefined_halves(program)
    program.swapped = _swapped(program)
    return program


def _swapped(program: Program) -> set[tuple[str, ...]]:
    """Return (address, compared register) of every compare-and-swap.

    A load of such a register from such an address only guesses the value. If the guess is wrong, the swap fails and
    returns the right value, so the load needs no ordering. LLVM emits this loop for an atomic operation that has no
    instruction. The load is plain in the PTX of Triton 3.6 and relaxed in that of 3.9.
    """
    return {
        instruction.operands[1:3]
        for instruction in program.instructions
        if instruction.family == "atom" and "cas" in instruction.qualifiers
    }


def _undefined_halves(program: Program) -> set[str]:
    """Return the registers that are packed into half of a 64-bit register or a pair of e4m3 but never written.

    LLVM uses them for a half that is not needed.
    """
    packed: set[str] = set()
    written: set[str] = set()
    for instruction in program.instructions:
        written.update(_REGISTER.findall(" ".join(instruction.operands[:1])))
        if instruction.opcode == "mov.b64":
            packed.update(_REGISTER.findall(instruction.operands[1]) if "{" in instruction.operands[1] else ())
        if instruction.opcode.endswith(".e4m3x2.f32"):
            packed.add(instruction.operands[1])
    return packed - written


def _split_entry(ptx: str) -> tuple[str, str, int]:
    """Return the entry's header, its body without the outer braces, and the line number of the body's start."""
    entry = re.search(r"\.visible\s+\.entry", ptx)
    if not entry:
        raise UnknownOpcode("PTX without an entry function")
    start = ptx.index("{", entry.start())
    depth = 0
    for brace in re.compile("[{}]").finditer(ptx, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return ptx[entry.start() : start], ptx[start + 1 : brace.start()], ptx.count("\n", 0, start) + 1
    raise UnknownOpcode("PTX that ends inside the entry function")


def _take_labels(program: Program, text: str) -> str:
    """Add the labels at the start of `text` to the program and return the rest."""
    while found := _LABEL.match(text):
        program.labels[found.group(1)] = len(program.instructions)
        text = text[found.end() :]
    return text


def _statement(program: Program, text: str, line: int, source: str) -> None:
    """Add a statement, given without its semicolon, to the program."""
    text = " ".join(_take_labels(program, text.strip().lstrip("{}").strip()).split()).lstrip("{} ")
    if not text:
        return
    if text.startswith("."):
        _directive(program, text)
        return
    guard, negated, rest = None, False, text
    if found := _GUARD.match(text):
        negated, guard, rest = found.group(1) == "!", found.group(2), found.group(3)
    opcode, _, operand_text = rest.partition(" ")
    operands = split_operands(operand_text)
    program.instructions.append(Instruction(opcode, operands, guard, negated, text, line, source))
    if guard and operands and not operands[0].startswith("["):
        program.maybe_undefined.update(re.findall(r"[%\w]+", operands[0]))


def _directive(program: Program, text: str) -> None:
    if found := _REGISTERS.match(text):
        for name in found.group(2).split(","):
            prefix, bracket, _ = name.strip().partition("<")
            program.register_types[prefix + bracket] = found.group(1)
    elif found := re.match(r"\.local\s.*\[(\d+)\]", text):
        program.local_bytes += int(found.group(1))
    elif not text.startswith(".pragma"):
        raise UnknownOpcode(f"unknown directive: {text}")
