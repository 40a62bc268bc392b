"""What differs between versions of Triton: bounds that hold for one alone, and what one cannot do."""

import numpy as np
import pytest
import triton

TRITON = tuple(int(number) for number in triton.__version__.split(".")[:2])

# The tests' own bounds were measured on Triton 3.9. These are the figures of other versions that exceed them.
MEASURED = {
    (3, 6): {
        "registers of paged_attention_kernel on hip:gfx942": 204,
        "instructions per key of 4 heads of 128, sm_80": 1124,
        "instructions per key of 8 heads of 128, sm_80": 1124,
        # Its cumulative sums take more instructions, which is a cost per row and not per logit.
        "instructions per logit of sample, sm_80": 8.3,
        "instructions per logit of sample, sm_90": 8.6,
        "instructions per logit of sample, sm_100": 8.7,
    }
}

needs_interpreter = pytest.mark.skipif(
    TRITON < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason=f"the interpreter of Triton {triton.__version__} fails under NumPy {np.__version__}: triton issue 9171",
)


def bound(what: str, most: float) -> float:
    """The most that `what` may be: `most`, or the figure measured on the version of Triton that is installed."""
    return MEASURED.get(TRITON, {}).get(what, most)
