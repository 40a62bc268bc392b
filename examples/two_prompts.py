"""One model and two prompts: classifier-free guidance and context-aware decoding with the same op.

    python examples/two_prompts.py path/to/model "A happy story." "Once upon a time"

The first text is a context, the second is continued. GOOD is the model with the context, BAD is the same model without
it, and both rows go through the model as one batch:

    classifier-free guidance (Sanchez et al. 2023, arXiv 2306.17806), of strength s:
        log p(x | text) + s * (log p(x | context, text) - log p(x | text))       good_weight s, contrast_strength s - 1
    context-aware decoding (Shi et al. 2023, arXiv 2305.14739), of strength a:
        (1 + a) * log p(x | context, text) - a * log p(x | text)                 good_weight 1 + a, contrast_strength a

The two are one formula with s = 1 + a.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from cdgen_kernels import SamplingTensors, contrastive_sample, make_sampling_tensors

NEW_TOKENS = 40


def guidance(strength: float) -> SamplingTensors:
    """Return the parameters of classifier-free guidance; min-p sampling with 0.05 keeps out unlikely tokens."""
    return make_sampling_tensors(1, alpha=0.05, good_weight=strength, contrast_strength=strength - 1)


def context_aware(strength: float) -> SamplingTensors:
    """Return the parameters of context-aware decoding over all tokens, with top-p 0.9 as in the paper."""
    return make_sampling_tensors(1, alpha=0.0, good_weight=1 + strength, contrast_strength=strength, top_p=0.9)


@torch.inference_mode()
def continue_text(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, sampling: SamplingTensors
) -> list[int]:
    """Return new tokens. Row 0 of `ids` and `mask` [2, T] is context and text, row 1 the text; padded on the left."""
    cache, tokens, inputs = DynamicCache(config=model.config), [], ids
    for _ in range(NEW_TOKENS):
        position = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        logits = model(
            inputs, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]  # [2, V]
        sampling.position.fill_(len(tokens))  # new noise for each token
        token = contrastive_sample(logits[:1], logits[1:], sampling).token  # [1]
        tokens.append(int(token))
        inputs = token.expand(2, 1)  # both rows read the same token
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
    return tokens


def main(name: str, context: str, text: str) -> None:
    """Print the continuation of a text under both methods."""
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    prompts = tokenizer([f"{context} {text}", text], return_tensors="pt", padding=True)
    methods = {"classifier-free guidance": guidance(1.5), "context-aware decoding": context_aware(0.5)}
    for method, sampling in methods.items():
        tokens = continue_text(model, prompts.input_ids, prompts.attention_mask, sampling)
        print(f"{method}: {text}{tokenizer.decode(tokens, skip_special_tokens=True)}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
