"""The worker of vLLM's CPU build; see worker.py.

It has the settings that vLLM's documentation recommends for CPUs: Intel's OpenMP is preloaded (it comes with the
package; vLLM itself preloads tcmalloc), one thread is bound to each core, and the model is compiled by torch.compile,
which is the default.
"""

import os
import sys
from pathlib import Path

from worker import Generate, Settings, serve


def start(settings: Settings) -> tuple[str, Generate]:
    """Load the model; see :func:`worker.serve`."""
    cores = sorted(os.sched_getaffinity(0))[: settings.threads]
    os.environ |= {
        "LD_PRELOAD": str(Path(sys.prefix, "lib", "libiomp5.so")),  # read by the engine's processes, not by this one
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    import vllm

    llm = vllm.LLM(
        settings.model,
        dtype=settings.dtype,
        max_model_len=settings.length,
        max_num_seqs=settings.sequences,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )

    def generate(prompts: list[list[int]], max_tokens: int, greedy: bool) -> list[list[int]]:
        params = vllm.SamplingParams(
            max_tokens=max_tokens, temperature=0.0 if greedy else 1.0, ignore_eos=True, detokenize=False
        )
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return f"vLLM {vllm.__version__}", generate


if __name__ == "__main__":
    serve(start)
