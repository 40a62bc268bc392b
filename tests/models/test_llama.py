"""LlamaRunner against transformers' forward: every supported family, prefill and every step, ragged batches."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from cdgen.models.bad import attention_dropout, first_layers
from cdgen.models.language_model import LanguageModel
from cdgen.models.layer_cache import LayerCache
from cdgen.models.llama import LlamaRunner, unsupported
from cdgen.models.loading import load
from cdgen_kernels import paged_attention
from tests.helpers.families import FAMILIES, LLAMA_LIKE, ids
from tests.helpers.tiny_models import SENTENCES, make_llama

# A window in two of three layers.
WINDOW = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1, "head_dim": 16}


def rope(**parameters: Any) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**LLAMA_LIKE, rope_parameters={"rope_theta": 10000.0} | parameters)


CONFIGS = {
    "llama": FAMILIES["llama"],
    "llama, one head of keys": lambda: transformers.LlamaConfig(**LLAMA_LIKE | {"num_key_value_heads": 1}),
    "llama, tied and with biases": lambda: transformers.LlamaConfig(
        **LLAMA_LIKE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama, GELU": lambda: transformers.LlamaConfig(**LLAMA_LIKE, hidden_act="gelu"),
    "linear rope": lambda: rope(rope_type="linear", factor=4.0),
    "llama3 rope": lambda: rope(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "yarn rope": lambda: rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=32),
    "mistral": FAMILIES["mistral"],
    "mistral, no window": lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=None),
    "qwen2": FAMILIES["qwen2"],
    "qwen2, window": lambda: transformers.Qwen2Config(**LLAMA_LIKE, **WINDOW),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=24),
    "qwen3, window": lambda: transformers.Qwen3Config(**LLAMA_LIKE, **WINDOW, attention_bias=True),
}


def make(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases are initialised to 1 and 0, which would hide mistakes
            parameter.data.uniform_(0.5, 1.5)
    return model


class Pages:
    """A runner's cache for several sequences: pages of 4 tokens in shuffled order, NaN until they are written."""

    def __init__(self, runner: LlamaRunner, rows: int, length: int = 64) -> None:
        config, pages = runner.config, -(-length // 4) * rows
        shape = (config.num_hidden_layers, pages, runner.num_kv_heads, 4, runner.head_dim)
        self.runner = runner
        keys, values = (torch.full(shape, float("nan"), dtype=runner.embedding.dtype) for _ in range(2))
        self.layers = [LayerCache(*both) for both in zip(keys, values, strict=True)]
        self.table = torch.randperm(pages, generator=torch.Generator().manual_seed(0)).view(rows, -1).int()

    @torch.inference_mode()
    def logits(
        self,
        tokens: list[int],
        rows: list[int],
        positions: list[int],
        seed: torch.Tensor | None = None,
        sequence: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of tokens, each in a row of the page table and at a position; all lists of one length."""
        row = torch.tensor(rows, dtype=torch.int32)
        at = torch.tensor(positions)
        hidden = self.runner.hidden_states(torch.tensor(tokens), at, row, self.table, self.layers, seed, sequence)
        return self.runner.logits(hidden)


def ragged(runner: LlamaRunner, sequences: list[list[int]], prompts: Sequence[int]) -> list[torch.Tensor]:
    """Return logits [T, V'] of each sequence: prompts as a ragged batch, then one token of every sequence per step."""
    pages = Pages(runner, len(sequences))
    flat = [
        (token, row, at) for row, sequence in enumerate(sequences) for at, token in enumerate(sequence[: prompts[row]])
    ]
    found = [[] for _ in sequences]
    steps = [flat]
    for step in range(max(map(len, sequences))):
        steps.append(
            [
                (sequence[p + step], row, p + step)
                for row, (sequence, p) in enumerate(zip(sequences, prompts, strict=True))
                if p + step < len(sequence)
            ]
        )
    for step in filter(None, steps):
        for (_, row, _), logits in zip(step, pages.logits(*map(list, zip(*step, strict=True))), strict=True):
            found[row].append(logits)
    return [torch.stack(each) for each in found]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers_to_rounding(name) -> None:
    """The error against float64 is at most three times that of transformers' float32."""
    model = make(CONFIGS[name]())
    assert unsupported(model) is None
    sequences = [ids(1, length, seed)[0].tolist() for seed, length in enumerate((40, 23, 31, 12))]
    with torch.inference_mode():
        theirs = [model(torch.tensor([sequence])).logits[0] for sequence in sequences]
        ours = ragged(LlamaRunner(model, 64), sequences, prompts=(9, 1, 30, 12))
        model.double()
        model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.float()
        exact = [model(torch.tensor([sequence])).logits[0] for sequence in sequences]
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert (mine - truth).abs().max() <= 3 * (other - truth).abs().max()


def test_bfloat16_error_is_no_larger_than_that_of_transformers() -> None:
    model = make_llama(0)
    sequence = ids(1, 40)[0].tolist()
    with torch.inference_mode():
        exact = model.double()(torch.tensor([sequence])).logits[0]
        theirs = model.bfloat16()(torch.tensor([sequence])).logits[0]
        (ours,) = ragged(LlamaRunner(model, 64), [sequence], prompts=(20,))
    assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()


@pytest.mark.slow
def test_smollm2_greedy_tokens_equal_those_of_transformers(smollm2) -> None:
    """200 tokens, and the logits of each step. transformers reads the whole text at once."""
    model, tokenizer = load(smollm2)
    prompt = tokenizer(SENTENCES[1])["input_ids"]
    stop = torch.tensor(sorted(model.eos_token_ids))
    with torch.inference_mode():
        pages = Pages(LlamaRunner(model.module, 256), 1, 256)
        logits = pages.logits(prompt, [0] * len(prompt), list(range(len(prompt))))
        written, steps = list(prompt), [logits]
        while len(written) < len(prompt) + 200:
            written.append(int(logits[-1].index_fill(0, stop, -torch.inf).argmax()))
            logits = pages.logits(written[-1:], [0], [len(written) - 1])
            steps.append(logits)
        theirs = model.module(torch.tensor([written])).logits[0]
    assert theirs.index_fill(1, stop, -torch.inf).argmax(1)[len(prompt) - 1 : -1].tolist() == written[len(prompt) :]
    torch.testing.assert_close(torch.cat(steps), theirs, rtol=0, atol=2e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "gpt_neox", "bloom", "opt"])
def test_other_families_are_not_supported(name) -> None:
    model = make(FAMILIES[name]())
    assert "is not of the Llama family" in unsupported(model)


def test_unsupported_features_of_the_family() -> None:
    assert "type dynamic" in unsupported(make(rope(rope_type="dynamic", factor=2.0)))
    partial = rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5)
    assert "only a part of each head" in unsupported(make(partial))
    mixed = make_llama(0)
    mixed.model.norm.bfloat16()
    assert "bfloat16, float32" in unsupported(mixed)
    wrapped = make_llama(0)
    wrapped.model.layers[0].mlp.up_proj = torch.nn.Sequential(wrapped.model.layers[0].mlp.up_proj)
    assert "not plain" in unsupported(wrapped)


@pytest.mark.parametrize("packing", [True, False])
def test_weights_stay_in_the_module_and_are_shared_by_bads_made_from_it(packing, tmp_path, monkeypatch) -> None:
    if not packing:
        monkeypatch.setattr("cdgen.models.products.can_pack", lambda weight: False)
    model = make_llama(0)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    good = LanguageModel(model, "good")
    text = ids(1, 12)[0].tolist()
    runners = [LlamaRunner(m.module, 64) for m in (good, first_layers(good, 1), attention_dropout(good, 0.3), good)]
    for runner in runners:
        ragged(runner, [text], prompts=(9,))
    assert len({id(runner.layers[0].qkv._packed) for runner in runners}) == 1
    pointers = {runner.layers[0].gate_up.layers[1].weight.data_ptr() for runner in runners}
    assert pointers == {model.model.layers[0].mlp.up_proj.weight.data_ptr()}
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(before[name], loaded[name]) for name in before)


def test_a_training_step_changes_the_logits() -> None:
    """A new runner has the new weights; an old one gets them by `refresh`."""
    model, text = make_llama(0), ids(1, 12)[0].tolist()
    runner = LlamaRunner(model, 64)
    ragged(runner, [text], prompts=(12,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.tensor([text]), labels=torch.tensor([text])).loss.backward()
    optimizer.step()
    with torch.inference_mode():
        theirs = model(torch.tensor([text])).logits[0]
    runner.refresh()
    for each in (runner, LlamaRunner(model, 64)):
        torch.testing.assert_close(ragged(each, [text], prompts=(9,))[0], theirs, rtol=1e-4, atol=1e-4)


def test_dropout_depends_on_the_sequence_and_not_on_the_batch(monkeypatch) -> None:
    runner = LlamaRunner(make_llama(0), 64, dropout=0.3)
    seed, text = torch.tensor([7]), ids(1, 12)[0].tolist()

    def run(rows: list[tuple[int, int]], seed: torch.Tensor = seed) -> tuple[torch.Tensor, ...]:
        """Return the logits of the tokens, run at once as several sequences: (cache row, sequence number) pairs."""
        pages, n = Pages(runner, 4), len(text)
        tokens, cache_rows, at = text * len(rows), [row for row, _ in rows for _ in text], list(range(n)) * len(rows)
        sequence = torch.tensor([number for _, number in rows]).repeat_interleave(n)
        return pages.logits(tokens, cache_rows, at, seed, sequence).split(n)

    (alone,) = run([(0, 5)])
    among = run([(3, 9), (1, 5), (2, 2**32 + 5)])
    torch.testing.assert_close(among[1], alone, rtol=1e-5, atol=1e-5)
    for other in (among[0], among[2], *run([(0, 5)], torch.tensor([8])), *run([(0, 5)], torch.tensor([7 + 2**32]))):
        assert (other - alone).abs().max() > 0.1
    given = []
    monkeypatch.setattr(
        "cdgen.models.llama.paged_attention",
        lambda *rest, **options: given.append(options) or paged_attention(*rest, **options),
    )
    run([(0, 5)])
    assert [(options["layer"], options["dropout"]) for options in given] == [(0, 0.3), (1, 0.3)]
    runner.dropout = 0.0
    assert (run([(0, 5)])[0] - alone).abs().max() > 0.1
