"""Replications: if the seeds of an experiment are independent, each has a GOOD and corpora of its own."""

import re
import shlex
from collections.abc import Callable, Sequence

from cdgen.report.parts import Part
from cdgen.storage import manifest as manifests

SEED = re.compile(r"-seed(-?\d+)(?=@|$)")  # the end of the names of a replication's stages


def corpora_of_one_seed(parts: Sequence[Part], note: Callable[[str], None]) -> list[Part]:
    """Leave out the generated corpora of all seeds but one, which are much alike.

    Args:
        parts: the parts of an experiment.
        note: receives what is left out.
    Returns:
        the other parts. The seed is the first of those with the most finished corpora.
    """
    seeds = {
        part.name: match[1] for part in parts if part.kind == manifests.GENERATED and (match := SEED.search(part.name))
    }
    finished = dict.fromkeys(seeds.values(), 0)
    for part in parts:
        if part.name in seeds and part.manifest["complete"]:
            finished[seeds[part.name]] += 1
    if len(finished) < 2:
        return list(parts)
    shown, *others = sorted(finished, key=finished.__getitem__, reverse=True)
    folder = next(part.path for part in parts if seeds.get(part.name) == others[0]).parent
    note(
        f"Each seed has corpora of its own; those of seed {shown} are shown. To see others, name them: "
        f"cdgen report {shlex.quote(str(folder))}/corpus-*-seed{others[0]}"
    )
    return [part for part in parts if seeds.get(part.name, shown) == shown]
