"""docs/cli.md is what its generator writes."""

import sys

import pytest

from tools.cli_docs import PATH, page


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11),
    reason="docs/cli.md is generated with Python 3.11; other versions may format help differently",
)
def test_the_page_is_up_to_date() -> None:
    assert PATH.read_text(encoding="utf-8") == page(), "run: python -m tools.cli_docs"
