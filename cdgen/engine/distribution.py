"""The distribution from which a token is drawn, over all tokens and in float64, as the reference ops define it."""

from torch import Tensor, zeros_like

from cdgen.engine.device_state import sampling_tensors
from cdgen.engine.sampling_params import SamplingParams
from cdgen_kernels.checks import outside_mode
from cdgen_kernels.reference import allowed_logits, contrastive_scores, keep_top


def kept_scores(good: Tensor, bad: Tensor | None, params: SamplingParams, banned: Tensor | None = None) -> Tensor:
    """Return the scores of the tokens that can be drawn; their softmax is the distribution.

    Args:
        good: GOOD's logits [N, V], before the temperature.
        bad: BAD's logits [N, V]; None if `contrast_strength` is 0.
        params: parameters, of which `alpha`, `contrast_strength`, `good_weight`, `temperature`, `top_k`, `top_p` and
            `outside_head` are used. Temperature 0 gives the scores of temperature 1.
        banned: int64 [N, B], token ids that cannot be drawn, -1 for no ban; or None.
    Returns:
        float64 [N, V], up to a constant per row; -inf for tokens that cannot be drawn.
    """
    sampling = sampling_tensors(params, len(good), good.device)
    good = allowed_logits(good, banned, good.shape[1])
    bad = zeros_like(good) if bad is None else bad.float()
    scores = contrastive_scores(good, bad, sampling, *outside_mode(params.outside_head))
    # Sorting the vocabulary takes longer than everything else.
    is_cut = params.top_k > 0 or params.top_p < 1
    return keep_top(scores, sampling.top_k, sampling.top_p) if is_cut else scores
