"""The worker of llama.cpp, through the C functions that llama-cpp-python exports; see worker.py.

All sequences are decoded in one batch, each with a sampler and a part of the cache of its own.
"""

import ctypes
from itertools import count
from typing import Any

import llama_cpp as llama
from worker import Generate, Settings, serve

GGML_TYPES = {"float32": 0, "bfloat16": 30}


class Decoder:
    """A model and its cache."""

    def __init__(self, settings: Settings) -> None:
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(settings.model.encode(), llama.llama_model_default_params())
        assert model, f"{settings.model} cannot be loaded"
        params = llama.llama_context_default_params()
        params.n_seq_max = settings.sequences
        params.n_ctx = settings.sequences * settings.length
        params.n_batch = max(params.n_batch, settings.sequences * settings.length)
        params.n_threads = params.n_threads_batch = settings.threads
        params.type_k = params.type_v = GGML_TYPES[settings.dtype]
        params.kv_unified = False  # a part of the cache for each sequence, so that none reads those of the others
        self.context = llama.llama_init_from_model(model, params)
        assert self.context, "no context"
        self.batch = llama.llama_batch_init(params.n_batch, 0, 1)
        self.seeds = count()

    def generate(self, prompts: list[list[int]], max_tokens: int, greedy: bool) -> list[list[int]]:
        """See :data:`worker.Generate`."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), False)
        samplers = [self._sampler(greedy) for _ in prompts]
        new: list[list[int]] = [[] for _ in prompts]
        inputs = prompts
        for step in range(max_tokens):
            lengths = [len(prompt) + step - 1 if step else 0 for prompt in prompts]
            for tokens, sampler, last in zip(new, samplers, self._decode(inputs, lengths), strict=True):
                tokens.append(llama.llama_sampler_sample(sampler, self.context, last))
            inputs = [tokens[-1:] for tokens in new]
        for sampler in samplers:
            llama.llama_sampler_free(sampler)
        return new

    def _sampler(self, greedy: bool) -> Any:
        sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        last = llama.llama_sampler_init_greedy() if greedy else llama.llama_sampler_init_dist(next(self.seeds))
        llama.llama_sampler_chain_add(sampler, last)
        return sampler

    def _decode(self, inputs: list[list[int]], positions: list[int]) -> list[int]:
        """Compute the next tokens of all sequences; return the place of each sequence's last token in the batch."""
        batch, size, last = self.batch, 0, []
        for sequence, (tokens, start) in enumerate(zip(inputs, positions, strict=True)):
            for place, token in enumerate(tokens):
                batch.token[size], batch.pos[size] = token, start + place
                batch.n_seq_id[size], batch.seq_id[size][0] = 1, sequence
                batch.logits[size] = place == len(tokens) - 1
                size += 1
            last.append(size - 1)
        batch.n_tokens = size
        code = llama.llama_decode(self.context, batch)
        assert code == 0, f"llama_decode returned {code}"
        return last


@llama.llama_log_callback
def ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Write nothing: llama.cpp reports every tensor that it loads."""


def start(settings: Settings) -> tuple[str, Generate]:
    """Load the model; see :func:`worker.serve`."""
    llama.llama_log_set(ignore, None)
    decoder = Decoder(settings)
    return f"llama-cpp-python {llama.__version__}", decoder.generate


if __name__ == "__main__":
    serve(start)
