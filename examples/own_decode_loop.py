"""Use the sampling op in your own decode loop, on any two causal language models of transformers.

python examples/own_decode_loop.py path/to/good path/to/bad "Once upon a time"
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cdgen import sequence_number
from cdgen_kernels import contrastive_sample, make_sampling_tensors

NEW_TOKENS = 40


@torch.inference_mode()
def main(good_name: str, bad_name: str, prompt: str) -> None:
    """Print the prompt and its contrastive continuation."""
    tokenizer = AutoTokenizer.from_pretrained(good_name)
    good, bad = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (good_name, bad_name))
    ids = tokenizer(prompt, return_tensors="pt").input_ids  # [1, T]
    number = sequence_number(ids[0])  # makes the loop draw what ContrastiveLM.generate draws
    sampling = make_sampling_tensors(1, alpha=0.1, contrast_strength=1.0, seed=0, sequence=number)
    for _ in range(NEW_TOKENS):
        good_logits, bad_logits = (model(ids).logits[:, -1] for model in (good, bad))  # [1, V]
        sampling.position.fill_(ids.shape[1])  # new noise for each token
        token = contrastive_sample(good_logits, bad_logits, sampling).token  # [1]
        ids = torch.cat([ids, token[:, None]], dim=1)
        if token.item() == tokenizer.eos_token_id:
            break
    print(tokenizer.decode(ids[0], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:4])
