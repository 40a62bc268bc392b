"""What the interpreter can find wrong with a kernel: a class for each kind, so that a test can name the one it
expects."""


class Fault(Exception):
    """Something the PTX does that no correct kernel does. `lane` is the first offending lane of the running group."""

    def __init__(self, message, lane=None):
        super().__init__(message)
        self.lane = lane
        self.located = False

    def locate(self, instruction, where):
        """Say which instruction did it, once: the innermost caller knows best."""
        if not self.located:
            source = f", from {instruction.source}" if instruction.source else ""
            self.args = (f"{self.args[0]}\n  PTX line {instruction.line}: {instruction.text}{source}\n  {where}",)
            self.located = True
        return self


class UnknownOpcode(Fault):
    """An opcode, a qualifier or an operand that the interpreter does not implement."""


class StrayAccess(Fault):
    """An access to a byte that no tensor of the launch owns."""


class Misaligned(Fault):
    """An address that is not a multiple of the access's width."""


class WriteConflict(Fault):
    """Two CTAs touch one byte and at least one of them stores to it, with nothing to order them."""


class Race(Fault):
    """Two warps of one CTA touch one byte between two barriers, and at least one of them stores to it."""


class Uninitialised(Fault):
    """A read of a register, of shared memory or of an output that nothing has written."""


class DivergentBarrier(Fault):
    """The threads of a CTA do not all reach the same barrier."""


class InactiveLane(Fault):
    """A warp-wide instruction that needs a lane which is not executing it."""


class Endless(Fault):
    """The kernel does not stop."""
