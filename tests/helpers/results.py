"""Results of evaluations that no model was needed for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cdgen.evaluation import results
from cdgen.evaluation.forms.base import Item
from cdgen.evaluation.metrics import Metric, Table, estimate
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder

ACCURACY = Metric("accuracy", "mean", {"value": "correct"})
PERPLEXITY = Metric("perplexity", "perplexity", {"nll": "nll", "count": "tokens"}, higher_is_better=False)


class Scored(NamedTuple):
    """The scores of one model on one task."""

    label: str
    task: str
    table: Table
    metric: Metric = ACCURACY
    seed: int | None = None
    step: int | None = None
    convention: str = "lm-eval"


def write_results(folder: Path, scored: Sequence[Scored]) -> Path:
    """Write scores as `cdgen evaluate` does; return the folder."""
    manifest = manifests.new(manifests.RESULTS) | {"environments": [{}], "results": []}
    with OutputFolder(folder) as out:
        for one in scored:
            number = len(next(iter(one.table.values())))
            items = [Item(f"item {at}", "", at) for at in range(number)]
            task = results.task_entry(one.task, "minimal_pairs", one.convention, items, [one.metric])
            model: results.ModelEntry = {
                "label": one.label,
                "seed": one.seed,
                "step": one.step,
                "name": f"models/{one.label}",
                "fingerprint": "sha256:0",
            }
            table = {"id": [item.id for item in items], "group": [""] * number}
            table |= {name: list(column) for name, column in one.table.items()}
            values = {one.metric.name: estimate(one.metric, one.table)}
            results.add(out, manifest, model, task, table, values, 0)
    return folder


def correct(share: float, items: int = 200, seed: int = 0) -> Table:
    """Return scores of which about this share is 1; items that are correct at one share are so at a larger one."""
    return {"correct": np.random.default_rng(seed).random(items) < share}
