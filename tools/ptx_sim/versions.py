"""Differences between Triton versions: bounds that hold for one version only, and what a version cannot do."""

import numpy as np
import pytest
import triton

TRITON = tuple(int(number) for number in triton.__version__.split(".")[:2])

# The bounds in the tests were measured with Triton 3.9. These are the figures of other versions that exceed them.
MEASURED: dict[tuple[int, ...], dict[str, float]] = {
    (3, 6): {
        "registers of paged_attention_kernel on hip:gfx942": 208,
        "instructions per key of 4 heads of 128, sm_80": 1124,
        "instructions per key of 8 heads of 128, sm_80": 1124,
        "instructions over shared prefixes, relative to one launch, 1 heads of 64": 0.33,
    }
}

needs_interpreter = pytest.mark.skipif(
    TRITON < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason=f"the interpreter of Triton {triton.__version__} fails under NumPy {np.__version__}: triton issue 9171",
)


def bound(what: str, most: float) -> float:
    """Return the upper bound of a figure: `most`, unless a higher one was measured with the installed Triton."""
    return MEASURED.get(TRITON, {}).get(what, most)
