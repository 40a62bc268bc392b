"""A decode loop whose steps are replays of one CUDA graph: both models, sampling, and the next token.

    python examples/cuda_graph.py path/to/good path/to/bad "Once upon a time"

Nothing between two tokens waits for the GPU: the op reads its parameters from tensors and leaves its token in one.
Without a GPU the same steps run one by one.
"""

import sys
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StaticCache

from cdgen_kernels import contrastive_sample, make_sampling_tensors

CONTINUATIONS, NEW_TOKENS = 4, 40
WARM_UP = 3  # steps before the capture: kernels are compiled, and libraries allocate their workspaces


def run_steps(step: Callable[[], torch.Tensor], count: int) -> torch.Tensor:
    """Return the tokens [B, count] of `count` steps; on a GPU all but the first ones replay a CUDA graph."""
    if not torch.cuda.is_available():
        print("no CUDA device: the steps run without a CUDA graph")
        return torch.cat([step().clone() for _ in range(count)], dim=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        tokens = [step().clone() for _ in range(WARM_UP)]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token = step()  # recorded, not run
    for _ in range(count - WARM_UP):
        graph.replay()
        tokens.append(token.clone())
    return torch.cat(tokens, dim=1)


@torch.inference_mode()
def main(good_name: str, bad_name: str, prompt: str) -> None:
    """Print contrastive continuations of a prompt."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(good_name)
    models = [AutoModelForCausalLM.from_pretrained(name).eval().to(device) for name in (good_name, bad_name)]
    prompts = tokenizer([prompt] * CONTINUATIONS, return_tensors="pt").input_ids.to(device)  # [B, T]
    length = prompts.shape[1]
    caches = [StaticCache(config=model.config, max_cache_len=length + NEW_TOKENS) for model in models]
    sampling = make_sampling_tensors(CONTINUATIONS, alpha=0.1, seed=0, position=length, device=device)

    def draw(ids: torch.Tensor) -> torch.Tensor:
        pairs = zip(models, caches, strict=True)
        good, bad = (model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1] for model, cache in pairs)
        token = contrastive_sample(good, bad, sampling).token[:, None]  # [B, 1]
        sampling.position.add_(1)  # new noise for the next token
        return token

    first = draw(prompts)
    newest = first.clone()  # every step reads this tensor, and writes the next tokens into it
    rest = run_steps(lambda: newest.copy_(draw(newest)), NEW_TOKENS - 1)
    tokens = torch.cat([prompts, first, rest], dim=1)
    for text in tokenizer.batch_decode(tokens, skip_special_tokens=True):
        print(text)


if __name__ == "__main__":
    main(*sys.argv[1:4])
