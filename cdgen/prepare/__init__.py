"""Corpora to train on: from any texts, documents split by hash into train, test and seeds."""

from cdgen.prepare.build import prepare
from cdgen.prepare.sources import Source, parse_source

__all__ = ["Source", "parse_source", "prepare"]
