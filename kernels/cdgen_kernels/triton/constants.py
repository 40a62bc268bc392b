"""Constants that the kernels refer to. Triton requires them to be wrapped in `tl.constexpr`."""

import triton.language as tl

from cdgen_kernels import codes

NAN_GOOD = tl.constexpr(codes.NAN_GOOD)
NOTHING_POSSIBLE = tl.constexpr(codes.NOTHING_POSSIBLE)
NAN_BAD = tl.constexpr(codes.NAN_BAD)
CANDIDATES_OVERFLOW = tl.constexpr(codes.CANDIDATES_OVERFLOW)
INVALID_PARAMETERS = tl.constexpr(codes.INVALID_PARAMETERS)
INVALID_CANDIDATES = tl.constexpr(codes.INVALID_CANDIDATES)

MASK = tl.constexpr(codes.MASK)
CONSTANT = tl.constexpr(codes.CONSTANT)
SHIFTED_GOOD = tl.constexpr(codes.SHIFTED_GOOD)

NAN_RANK = tl.constexpr(2)  # rank of an entry whose logit of BAD is NaN, above all others

# Layout of BAD's logits in the sampling kernels.
NO_BAD = tl.constexpr(0)  # there are none
BAD_DENSE = tl.constexpr(1)  # [B, V], indexed by token id
BAD_GATHERED = tl.constexpr(2)  # [B, C], indexed by place in the candidate list

LOWEST = tl.constexpr(-3.4028234663852886e38)  # the least finite float32
