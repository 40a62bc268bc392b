"""Contrastive decoding with two models as a custom generation method of transformers; see README.md."""

from typing import Any

from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList, StopStringCriteria

from cdgen.integrations.transformers import contrastive_generate


def generate(
    model: PreTrainedModel,
    bad_model: PreTrainedModel,
    tokenizer: Any = None,
    streamer: Any = None,
    stop_strings: str | list[str] | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    assistant_model: PreTrainedModel | None = None,
    synced_gpus: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Decode with `model` (GOOD) and `bad_model` (BAD); other arguments are those of `generate`.

    Args:
        model: the model whose `generate` was called.
        bad_model: a causal language model with the same vocabulary, whose log-probabilities are subtracted.
        tokenizer, stop_strings: end a sequence at one of these strings.
        streamer: receives the prompt and each new token.
        stopping_criteria: further criteria.
        assistant_model, synced_gpus: refused.
        kwargs: `alpha`, `contrast_strength`, `good_weight`, `outside_head`, `seed`, and arguments of `generate`.
    """
    if assistant_model is not None or synced_gpus:
        raise ValueError("assistant_model, synced_gpus: not supported with contrastive decoding")
    criteria = StoppingCriteriaList(stopping_criteria or ())
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings: pass the tokenizer as well (tokenizer=)")
        criteria.append(StopStringCriteria(tokenizer, stop_strings))
    # Not model.generate, which is this function if the model was loaded from the repository of this file.
    return GenerationMixin.generate(
        model,
        custom_generate=contrastive_generate,
        bad_model=bad_model,
        token_streamer=streamer,
        stopping_criteria=criteria,
        **kwargs,
    )
