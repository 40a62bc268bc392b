"""Fault injection: functions that return PTX with a single fault. A test's value shows in the faults it catches.

An instruction is selected by the start of its opcode ("st.global" also matches st.global.v4.b32) and by `which`, the
index among the matching instructions in the order of the text.
"""

import re
from collections.abc import Callable, Iterator

from .errors import Fault

_INSTRUCTION = re.compile(r"^(?P<indent>\s*)(?P<guard>@!?%\w+\s+)?(?P<opcode>[a-z][\w.:]*)(?P<rest>\s.*;|;)", re.M)

_ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]")


def find(ptx: str, opcode: str) -> list[re.Match[str]]:
    """Return a match for every instruction at the start of a line whose opcode starts with `opcode`."""
    return [found for found in _INSTRUCTION.finditer(ptx) if found["opcode"].startswith(opcode)]


def _edit(ptx: str, opcode: str, which: int, change: Callable[[re.Match[str]], str]) -> str:
    matches = find(ptx, opcode)
    if which >= len(matches):
        raise LookupError(f"cannot select instruction {which}: the PTX has {len(matches)} {opcode} instructions")
    found = matches[which]
    new = change(found)
    if new == found.group():
        raise LookupError(f"nothing to change in {found.group().strip()}")
    return ptx[: found.start()] + new + ptx[found.end() :]


def remove(ptx: str, opcode: str, which: int = 0) -> str:
    """Remove an instruction, such as a barrier, a store or a wait."""
    return _edit(ptx, opcode, which, lambda found: "")


def unguard(ptx: str, opcode: str, which: int = 0) -> str:
    """Remove the predicate of an instruction, such as a mask."""
    return _edit(ptx, opcode, which, lambda found: found["indent"] + found["opcode"] + found["rest"])


def guard(ptx: str, opcode: str, predicate: str, which: int = 0) -> str:
    """Make an instruction depend on a predicate ("%p1")."""
    return _edit(ptx, opcode, which, lambda found: f"{found['indent']}@{predicate} {found['opcode']}{found['rest']}")


def shift_address(ptx: str, opcode: str, by: int, which: int = 0) -> str:
    """Move the address of a memory instruction by a number of bytes."""

    def change(found: re.Match[str]) -> str:
        return _ADDRESS.sub(lambda at: f"[{at[1]}+{int(at[2] or 0) + by}]", found.group(), count=1)

    return _edit(ptx, opcode, which, change)


def substitute(ptx: str, opcode: str, old: str, new: str, which: int = 0) -> str:
    """Replace part of an instruction's text, such as a comparison, a constant or a register."""
    return _edit(ptx, opcode, which, lambda found: found.group().replace(old, new, 1))


def widen_mask(ptx: str, opcode: str, which: int = 0) -> str:
    """Let one more element pass the mask of a memory instruction: its comparison `.lt.` becomes `.le.`."""
    predicate = find(ptx, opcode)[which]["guard"].strip().removeprefix("@")
    masks = [index for index, found in enumerate(find(ptx, "setp")) if found["rest"].split(",")[0].strip() == predicate]
    return substitute(ptx, "setp", ".lt.", ".le.", masks[0])


def make_plain(ptx: str, which: int = 0) -> str:
    """Replace a 32-bit atomic addition by a load, an addition and a store."""

    def change(found: re.Match[str]) -> str:
        plain = r"\1ld.global.b32 \3, [\4]; add.\2 %plain, \3, \5; \1st.global.b32 [\4], %plain;"
        pattern = r"\s*(@!?%\w+ |)atom\.global[\w.]*\.add\.(\w+) (%\w+), \[([^\]]*)\], (%\w+);"
        return ".reg .b32 %plain;" + re.sub(pattern, plain, found.group())

    return _edit(ptx, "atom.global", which, change)


_OFF_BY_ONE = {".lt.": ".le.", ".gt.": ".ge.", ".le.": ".lt.", ".ge.": ".gt."}


def mutants(ptx: str) -> Iterator[tuple[str, str]]:
    """Yield (name, mutated PTX) for every single fault of the usual kinds.

    Some mutants are not faults: for example a barrier that another one makes redundant, or the mask of a store of the
    same value by every lane. A mutant that no test catches needs an explanation, not always a fix.
    """
    for which in range(len(find(ptx, "bar.sync"))):
        yield f"without barrier {which}", remove(ptx, "bar.sync", which)
    for opcode in ("st.global", "st.shared", "atom", "red.global", "cp.async"):
        for which in range(len(find(ptx, opcode))):
            yield f"without {opcode} {which}", remove(ptx, opcode, which)
    for opcode in ("ld.global", "st.global", "atom"):
        for which, found in enumerate(find(ptx, opcode)):
            if found["guard"]:
                yield f"{opcode} {which} without its mask", unguard(ptx, opcode, which)
    for opcode in ("ld.global", "st.global", "ld.shared", "st.shared", "atom"):
        for which in range(len(find(ptx, opcode))):
            yield f"{opcode} {which} two bytes further", shift_address(ptx, opcode, 2, which)
            yield f"{opcode} {which} 16 bytes further", shift_address(ptx, opcode, 16, which)
    for which, found in enumerate(find(ptx, "setp")):
        for old, new in _OFF_BY_ONE.items():
            if old in found["opcode"]:
                yield f"comparison {which} off by one", substitute(ptx, "setp", old, new, which)
    for which, found in enumerate(find(ptx, "shfl")):
        distance = re.search(r", (\d+), \d+, -1;", found.group())
        if distance:
            other = int(distance[1]) * 2 % 31 or 1
            wrong = distance[0].replace(distance[1], str(other), 1)
            yield f"shuffle {which} from another lane", substitute(ptx, "shfl", distance[0], wrong, which)


def caught_by(attempt: Callable[[], bool]) -> type[Fault] | str | None:
    """Return the type of the Fault that `attempt()` raised, "result" if it returned False, None if it returned True."""
    try:
        return None if attempt() else "result"
    except Fault as fault:
        return type(fault)
