"""Which corpora a report shows of an experiment whose seeds are independent."""

from pathlib import Path

from cdgen.report.parts import Part
from cdgen.report.replications import corpora_of_one_seed
from cdgen.storage import manifest as manifests


def generated(name: str, complete: bool = True) -> Part:
    return Part(manifests.GENERATED, name, Path("run") / name, {"complete": complete})


REAL = Part(manifests.PREPARED, "corpus", Path("run/corpus"), {})
GOOD = Part(manifests.RUN, "good-seed42", Path("run/good-seed42"), {})


def shown(*parts: Part) -> tuple[list[str], list[str]]:
    notes: list[str] = []
    return [part.name for part in corpora_of_one_seed([REAL, GOOD, *parts], notes.append)], notes


def test_the_corpora_of_the_first_seed_are_shown() -> None:
    corpora = [generated(f"corpus-{name}-seed{seed}") for seed in (42, 43) for name in ("ancestral", "contrastive")]
    names, notes = shown(*corpora)
    assert names == ["corpus", "good-seed42", "corpus-ancestral-seed42", "corpus-contrastive-seed42"]
    assert notes == [
        "Each seed has corpora of its own; those of seed 42 are shown. To see others, name them: "
        "cdgen report run/corpus-*-seed43"
    ]


def test_a_seed_with_more_finished_corpora_is_preferred() -> None:
    first = [generated("corpus-ancestral-seed7"), generated("corpus-contrastive-seed7", complete=False)]
    second = [generated("corpus-ancestral-seed-8"), generated("corpus-contrastive-seed-8")]
    names, notes = shown(*first, *second)
    assert names[2:] == ["corpus-ancestral-seed-8", "corpus-contrastive-seed-8"]
    assert notes[0].endswith("cdgen report run/corpus-*-seed7")


def test_corpora_that_all_seeds_share_stay() -> None:
    shared = [generated("corpus-ancestral"), generated("corpus-contrastive")]
    assert shown(*shared) == (["corpus", "good-seed42", "corpus-ancestral", "corpus-contrastive"], [])
    one_seed = [generated("corpus-ancestral-seed42"), generated("my-texts")]
    assert shown(*one_seed) == (["corpus", "good-seed42", "corpus-ancestral-seed42", "my-texts"], [])
