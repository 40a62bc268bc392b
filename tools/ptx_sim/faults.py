"""Faults to inject: functions from PTX text to PTX text with one thing wrong. A test is worth what it catches of these.

`which` counts the matching instructions from 0, in the order of the text. An instruction is chosen by the start of its
opcode: "st.global" finds st.global.v4.b32 too.
"""

import re

from .errors import Fault

_INSTRUCTION = re.compile(r"^(?P<indent>\s*)(?P<guard>@!?%\w+\s+)?(?P<opcode>[a-z][\w.:]*)(?P<rest>\s.*;|;)", re.M)

_ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]")


def find(ptx, opcode):
    """Matches of the instructions whose opcode starts with `opcode`, each at the start of a line."""
    return [found for found in _INSTRUCTION.finditer(ptx) if found["opcode"].startswith(opcode)]


def _edit(ptx, opcode, which, change):
    matches = find(ptx, opcode)
    if which >= len(matches):
        raise LookupError(f"{len(matches)} instructions {opcode}, and number {which} was asked for")
    found = matches[which]
    new = change(found)
    if new == found.group():
        raise LookupError(f"nothing to change in {found.group().strip()}")
    return ptx[: found.start()] + new + ptx[found.end() :]


def remove(ptx, opcode, which=0):
    """Drops an instruction: a barrier, a store, a wait."""
    return _edit(ptx, opcode, which, lambda found: "")


def unguard(ptx, opcode, which=0):
    """Drops the predicate of an instruction: a mask."""
    return _edit(ptx, opcode, which, lambda found: found["indent"] + found["opcode"] + found["rest"])


def guard(ptx, opcode, predicate, which=0):
    """Makes an instruction depend on a predicate ("%p1")."""
    return _edit(ptx, opcode, which, lambda found: f"{found['indent']}@{predicate} {found['opcode']}{found['rest']}")


def shift_address(ptx, opcode, by, which=0):
    """Moves the address of a memory instruction by some bytes."""

    def change(found):
        return _ADDRESS.sub(lambda at: f"[{at[1]}+{int(at[2] or 0) + by}]", found.group(), count=1)

    return _edit(ptx, opcode, which, change)


def substitute(ptx, opcode, old, new, which=0):
    """Replaces a piece of an instruction's text: a comparison, a constant, a register."""
    return _edit(ptx, opcode, which, lambda found: found.group().replace(old, new, 1))


def widen_mask(ptx, opcode, which=0):
    """Lets one element more through the mask of a memory instruction: `.lt.` becomes `.le.` in its comparison."""
    predicate = find(ptx, opcode)[which]["guard"].strip().removeprefix("@")
    masks = [place for place, found in enumerate(find(ptx, "setp")) if found["rest"].split(",")[0].strip() == predicate]
    return substitute(ptx, "setp", ".lt.", ".le.", masks[0])


def make_plain(ptx, which=0):
    """Turns an atomic addition of 32 bits into a load, an addition and a store."""

    def change(found):
        plain = r"\1ld.global.b32 \3, [\4]; add.\2 %plain, \3, \5; \1st.global.b32 [\4], %plain;"
        pattern = r"\s*(@!?%\w+ |)atom\.global[\w.]*\.add\.(\w+) (%\w+), \[([^\]]*)\], (%\w+);"
        return ".reg .b32 %plain;" + re.sub(pattern, plain, found.group())

    return _edit(ptx, "atom.global", which, change)


_OFF_BY_ONE = {".lt.": ".le.", ".gt.": ".ge.", ".le.": ".lt.", ".ge.": ".gt."}


def mutants(ptx):
    """Every single fault of the usual kinds: yields (name, mutated PTX).

    A mutant that changes nothing that matters (a barrier that another one makes needless, the mask of a store that
    every lane would do alike) is no fault; what survives needs an explanation, not always a fix.
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
            wrong = found.group().replace(distance[0], distance[0].replace(distance[1], str(other), 1))
            yield f"shuffle {which} from another lane", _edit(ptx, "shfl", which, lambda _, wrong=wrong: wrong)


def caught_by(attempt):
    """The Fault that `attempt()` raised, or "result" if it returned False, or None if it found nothing wrong."""
    try:
        return None if attempt() else "result"
    except Fault as fault:
        return type(fault)
