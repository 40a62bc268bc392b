"""Continue one prompt by several decoding methods, with the same seed.

python examples/compare_methods.py path/to/good path/to/bad "The lighthouse keeper"
"""

import sys

from cdgen import ContrastiveLM, SamplingParams


def main(good: str, bad: str, prompt: str) -> None:
    """Print one continuation per method, with the mean log-probability of its tokens under GOOD."""
    lm = ContrastiveLM(good, bad)
    for method in ("ancestral", "head", "contrastive", "contrastive_top_k"):
        params = SamplingParams.for_method(method, max_tokens=40, seed=1, logprobs=True)
        [output] = lm.generate(prompt, params)[0].outputs
        mean = sum(token.good for token in output.logprobs or []) / len(output.token_ids)
        print(f"{method} (mean log-probability under GOOD {mean:.2f}): {prompt}{output.text}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
