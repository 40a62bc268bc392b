"""The sampling op inside `model.generate` of transformers, as a LogitsProcessor.

    python examples/logits_processor.py path/to/good path/to/bad "Once upon a time"

The processor draws the token itself and gives all others a score of -inf, so `generate` needs do_sample=False. BAD has
a cache of its own. The program continues one prompt four times. For prompts of different lengths, there is
`ContrastiveLogitsProcessor` in cdgen.integrations.transformers.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessor, LogitsProcessorList

from cdgen_kernels import contrastive_sample, make_sampling_tensors

CONTINUATIONS, NEW_TOKENS = 4, 40


class ContrastiveSampler(LogitsProcessor):
    """Draws one token per row from GOOD's logits, which `generate` computes, and BAD's."""

    def __init__(self, bad: torch.nn.Module, rows: int, alpha: float = 0.1, seed: int = 0) -> None:
        self.bad, self.cache = bad, DynamicCache(config=bad.config)
        self.sampling = make_sampling_tensors(rows, alpha=alpha, seed=seed, device=bad.device)

    @torch.inference_mode()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [B, V] in which only the drawn token of each row can be chosen; input_ids is [B, T]."""
        new = input_ids[:, self.cache.get_seq_length() :]
        bad_logits = self.bad(new, past_key_values=self.cache, logits_to_keep=1).logits[:, -1]  # [B, V]
        self.sampling.position.fill_(input_ids.shape[1])  # new noise for each token
        token = contrastive_sample(scores, bad_logits, self.sampling).token  # [B]
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


def main(good_name: str, bad_name: str, prompt: str) -> None:
    """Print contrastive continuations of a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(good_name)
    good, bad = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (good_name, bad_name))
    inputs = tokenizer([prompt] * CONTINUATIONS, return_tensors="pt", return_token_type_ids=False)
    processors = LogitsProcessorList([ContrastiveSampler(bad, CONTINUATIONS)])
    ids = good.generate(**inputs, logits_processor=processors, do_sample=False, max_new_tokens=NEW_TOKENS)
    for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
        print(text)


if __name__ == "__main__":
    main(*sys.argv[1:4])
