"""Constants that the kernels refer to. Triton requires them to be wrapped in `tl.constexpr`."""

import triton.language as tl

from cdgen_kernels import codes

NAN_GOOD = tl.constexpr(codes.NAN_GOOD)
NOTHING_POSSIBLE = tl.constexpr(codes.NOTHING_POSSIBLE)
NAN_BAD = tl.constexpr(codes.NAN_BAD)
CANDIDATES_OVERFLOW = tl.constexpr(codes.CANDIDATES_OVERFLOW)

MASK = tl.constexpr(codes.MASK)
CONSTANT = tl.constexpr(codes.CONSTANT)
SHIFTED_GOOD = tl.constexpr(codes.SHIFTED_GOOD)

# Layout of BAD's logits in the sampling kernels.
NO_BAD = tl.constexpr(0)  # there are none
BAD_DENSE = tl.constexpr(1)  # [B, V], indexed by token id
BAD_GATHERED = tl.constexpr(2)  # [B, C], indexed by place in the candidate list

LOWEST = tl.constexpr(-3.4028234663852886e38)  # initial value of a maximum; -inf minus itself would be NaN
