"""What the tests of kernels share."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    """Forget the counters of a test's launches: an injected fault may have left some that are not 0."""
    yield
    if arrivals := sys.modules.get("cdgen_kernels.triton.arrivals"):
        arrivals._buffers.clear()
