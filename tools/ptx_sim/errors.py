"""The faults that the interpreter detects: one class per kind, so that a test can name the one that it expects."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .parser import Instruction


class Fault(Exception):
    """Something that no correct kernel does. `lane` is the first offending lane of the running group."""

    def __init__(self, message: str, lane: int | None = None) -> None:
        super().__init__(message)
        self.lane = lane
        self.located = False

    def locate(self, instruction: "Instruction", where: str) -> "Fault":
        """Add the faulting instruction to the message. Only the first, innermost call has an effect."""
        if not self.located:
            source = f", from {instruction.source}" if instruction.source else ""
            self.args = (f"{self.args[0]}\n  PTX line {instruction.line}: {instruction.text}{source}\n  {where}",)
            self.located = True
        return self


class UnknownOpcode(Fault):
    """An opcode, qualifier or operand that the interpreter does not implement."""


class StrayAccess(Fault):
    """An access to a byte that no tensor of the launch owns."""


class Misaligned(Fault):
    """An address that is not a multiple of the access's width."""


class WriteConflict(Fault):
    """Two CTAs access the same byte, at least one of them stores to it, and nothing orders the accesses."""


class Race(Fault):
    """Two warps of a CTA access the same byte between two barriers, and at least one of them stores to it."""


class Uninitialised(Fault):
    """A read of a register, shared memory or an output that has not been written."""


class DivergentBarrier(Fault):
    """The threads of a CTA do not all reach the same barrier."""


class InactiveLane(Fault):
    """A warp-wide instruction that needs a lane that does not execute it."""


class Endless(Fault):
    """The kernel has not ended within its limit of executed blocks."""
