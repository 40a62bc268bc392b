"""How everything was made: environments, fingerprints and seeds, from the manifests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cdgen import __version__
from cdgen.corpus import manifest as generated
from cdgen.environment import versions
from cdgen.evaluation.comparison.data import Comparison
from cdgen.report.content import Command, Environment, Made, Pairs
from cdgen.report.names import Names
from cdgen.report.parts import Part, of_kind
from cdgen.report.roles import pair_of
from cdgen.storage import manifest as manifests

CITATIONS: Pairs = (
    (
        "the paper",
        """\
@inproceedings{ulm2025contrastive,
  title     = {Contrastive Decoding for Synthetic Data Generation in Low-Resource Language Modeling},
  author    = {Ulm, Jannek and Du, Kevin and Sn{\\ae}bjarnarson, V{\\'e}steinn},
  booktitle = {Proceedings of the First BabyLM Workshop},
  year      = {2025},
  url       = {https://aclanthology.org/2025.babylm-main.2/},
  note      = {arXiv 2510.08245}
}""",
    ),
    (
        "cdgen",
        f"""\
@software{{cdgen,
  title   = {{cdgen: fast contrastive decoding with two language models}},
  author  = {{{{The cdgen developers}}}},
  version = {{{__version__}}},
  license = {{Apache-2.0}}
}}""",
    ),
)


def how_it_was_made(
    parts: Sequence[Part], names: Names, commands: Sequence[Command], comparison: Comparison | None
) -> Made:
    """Return how the parts of a report were made.

    Args:
        parts: the parts of the report.
        names: what names in manifests stand for.
        commands: the stages of the experiment, if it is one.
        comparison: the comparison that the report shows, if any.
    """
    return Made(
        commands=tuple(commands),
        environments=_environments(parts),
        fingerprints=tuple(dict.fromkeys(each for part in parts for each in _fingerprints(part, names))),
        seeds=(*(each for part in parts for each in _seeds(part)), *_drawn(parts, comparison)),
        citations=CITATIONS,
    )


def _environments(parts: Sequence[Part]) -> tuple[Environment, ...]:
    """Return the distinct environments, and that of the report itself."""
    users: dict[Pairs, list[str]] = {}
    for part in parts:
        stated = part.manifest.get("environments", ())
        if part.kind == manifests.TOKENIZER and isinstance(part.manifest.get("versions"), dict):
            stated = [part.manifest["versions"]]
        for environment in stated:
            users.setdefault(_pairs(environment), []).append(part.name)
    users.setdefault(_pairs(versions()), []).append("this report")
    return tuple(Environment(values, tuple(dict.fromkeys(of))) for values, of in users.items() if values)


def _pairs(environment: Mapping[str, Any]) -> Pairs:
    return tuple((name, str(value)) for name, value in environment.items())


def _fingerprints(part: Part, names: Names) -> Iterator[tuple[str, str]]:
    """Yield what a manifest says about the content of a part and of what it was made from."""
    manifest = part.manifest
    if part.kind in (manifests.PREPARED, manifests.TOKENIZER):
        yield part.name, manifest["fingerprint"]
    elif part.kind == manifests.GENERATED:
        yield part.name, f"sha256:{generated.fingerprint(manifest)}"
        yield f"seeds of {part.name}", manifest["seeds"]["fingerprint"]
        for model in pair_of(part, names):
            if model is not None:
                yield model.name, model.fingerprint
    elif part.kind == manifests.RESULTS:
        for result in manifest["results"]:
            entry = {name: result["model"][name] for name in ("name", "fingerprint")}
            yield names.model(entry).name, entry["fingerprint"]
        for result in manifest["results"]:
            yield f"items of {result['task']['name']}", result["task"]["fingerprint"]


def _seeds(part: Part) -> Iterator[tuple[str, str]]:
    manifest = part.manifest
    stated = {
        manifests.PREPARED: ("splits of {}", "settings"),
        manifests.RUN: ("weights and data of {}", "config"),
        manifests.GENERATED: ("draws of {}", "settings"),
    }
    if part.kind in stated:
        text, field = stated[part.kind]
        seed = manifest[field].get("seed")
        if seed is not None:
            yield text.format(part.name), str(seed)


def _drawn(parts: Sequence[Part], comparison: Comparison | None) -> Iterator[tuple[str, str]]:
    """Yield the seeds of what the report itself draws."""
    if comparison is not None:
        yield "resamples of the comparison", str(comparison.seed)
    if of_kind(parts, manifests.PREPARED, manifests.GENERATED):
        yield "samples for the statistics of the corpora", "0"
