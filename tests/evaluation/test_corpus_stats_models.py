"""Scores of a sample of documents under GOOD and BAD; texts of a generated corpus that reach the end of text."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdgen import CompletionOutput, ContrastiveLM, SamplingParams
from cdgen.corpus.writer import write_corpus
from cdgen.engine.requests import Prompts
from cdgen.errors import InputError
from cdgen.evaluation.corpus_stats import contrast as module
from cdgen.evaluation.corpus_stats.contrast import DocumentSample, contrast
from cdgen.evaluation.corpus_stats.corpus_stats import EndOfText, corpus_stats
from cdgen.evaluation.corpus_stats.words import Part, blocks
from cdgen.storage.folder import OutputFolder
from tests.helpers.corpora import numbered_seeds
from tests.helpers.tiny_models import SENTENCES, VOCABULARY

ALPHA = 0.2
TEXTS = [*SENTENCES, " ".join(SENTENCES) * 20, "a"]  # one is longer than the models' 256 positions


@pytest.fixture(scope="module")
def pair(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"], dtype="float32")


def log_probs(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities of every token at every position but the last, [T - 1, V]."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1, :VOCABULARY]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("rows", [64, 3])
def test_figures_equal_those_of_whole_distributions(
    pair: ContrastiveLM,
    good: LlamaForCausalLM,
    bad: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    found = contrast(pair, TEXTS, alpha=ALPHA)
    of_good, of_bad, entropies, counts = [], [], [], []
    for text in TEXTS:
        ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"]][:256]
        by_good, by_bad = log_probs(good, ids), log_probs(bad, ids)
        targets = torch.tensor(ids[1:])[:, None]
        of_good += by_good.gather(1, targets)[:, 0].tolist()
        of_bad += by_bad.gather(1, targets)[:, 0].tolist()
        entropies += (-(by_good.exp() * by_good).sum(1)).tolist()
        probabilities = by_good.exp()
        counts += (probabilities >= ALPHA * probabilities.max(1, keepdim=True).values).sum(1).tolist()
    assert (found.documents, found.tokens) == (len(TEXTS), len(of_good))
    assert found.good_perplexity == pytest.approx(np.exp(-np.mean(of_good)), rel=1e-4)
    assert found.bad_perplexity == pytest.approx(np.exp(-np.mean(of_bad)), rel=1e-4)
    assert found.mean_contrast == pytest.approx(np.mean(of_good) - np.mean(of_bad), abs=1e-4)
    assert found.good_entropy == pytest.approx(np.mean(entropies), rel=1e-4)
    assert found.mean_candidates == pytest.approx(np.mean(counts))
    bins = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    shares = np.bincount(np.searchsorted(bins, counts)) / len(counts)
    assert list(found.candidates) == bins[: len(shares)]
    assert list(found.candidates.values()) == pytest.approx(shares.tolist())


def test_one_model_with_a_padded_output_layer(folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> None:
    lm = ContrastiveLM(folders["wide"])
    found = contrast(lm, SENTENCES[:1])
    assert (found.bad_perplexity, found.mean_contrast) == (None, None)
    ids = [0, *tokenizer(SENTENCES[0], add_special_tokens=False)["input_ids"]]
    scored = log_probs(lm.pair.good.module, ids).gather(1, torch.tensor(ids[1:])[:, None])
    assert found.good_perplexity == pytest.approx(float(scored.mean().neg().exp()), rel=1e-4)


def test_a_dropout_bad_is_deterministic(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["good"], dropout=0.5)
    state = torch.get_rng_state()
    first, second, other = (contrast(lm, TEXTS, seed=seed).bad_perplexity for seed in (0, 0, 1))
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_models_are_one_line(folders: dict[str, Path], pair: ContrastiveLM) -> None:
    with pytest.raises(InputError, match=r"bare: has no tokenizer, which scoring texts needs"):
        contrast(ContrastiveLM(folders["bare"]), TEXTS)
    broken = ContrastiveLM(folders["good"])
    next(iter(broken.pair.good.module.model.layers)).mlp.down_proj.weight.data.fill_(torch.inf)
    with pytest.raises(InputError, match=r"good: the log-probability of a document is nan"):
        contrast(broken, TEXTS)
    for alpha in (0, -1, 1.5, float("nan"), "a"):
        with pytest.raises(InputError, match="alpha = "):
            contrast(pair, TEXTS, alpha=alpha)  # type: ignore[arg-type]


def draw(texts: list[str], size: int, seed: int) -> list[str]:
    drawn = DocumentSample(size, seed)
    for block in blocks(Part(number, text) for number, text in enumerate(texts)):
        drawn.add(block)
    return drawn.texts()


def test_a_sample_is_random_and_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {number}" if number % 4 else " " for number in range(400)]
    first = draw(texts, 30, 0)
    assert sorted({*first}, key=texts.index) == first and len(first) == 30 and " " not in first
    assert draw(texts, 1000, 0) == [text for text in texts if text != " "]
    often = sum("text 1" in draw(texts, 100, seed) for seed in range(300))
    assert 70 < often < 130  # 100 expected: 100 of 300 texts are drawn
    monkeypatch.setattr("cdgen.evaluation.corpus_stats.words._BLOCK", 100)
    assert draw(texts, 30, 0) == first != draw(texts, 30, 1)


def test_a_long_document_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdgen.evaluation.corpus_stats.words._BLOCK", 10)
    drawn = DocumentSample(9, 0)
    for block in blocks([Part(0, "first"), Part(0, "second"), Part(1, "third")]):
        drawn.add(block)
    assert drawn.texts() == ["first", "third"]


def _is_stopped(output: CompletionOutput) -> bool:
    return output.finish_reason == "stop"


def _has_end_of_text(output: CompletionOutput) -> bool:
    return 1 in output.token_ids


@pytest.mark.parametrize("format", ["parquet", "jsonl.gz"])
@pytest.mark.parametrize("split", [False, True])
def test_a_generated_corpus(pair: ContrastiveLM, tmp_path: Path, split: bool, format: str) -> None:
    """End-of-text tokens count wherever they are in a continuation; documents are those that training reads."""
    params = SamplingParams(
        max_tokens=30, ignore_eos=True, contrast_strength=0, temperature=2.0, n=3, stop_token_ids=[2, 3]
    )
    with OutputFolder(tmp_path / "corpus") as folder:
        write_corpus(pair, numbered_seeds(8), folder, params, shard_size=10, split_documents=split, format=format)
    [found] = corpus_stats([tmp_path / "corpus"], models=pair, sample=5)
    prompts = Prompts([seed.token_ids for seed in numbered_seeds(8)], [seed.id for seed in numbered_seeds(8)])
    outputs: dict[int, CompletionOutput] = {}
    pair.continue_sequences(prompts, list(product(range(8), range(3))), params, on_finished=outputs.__setitem__)
    stopped, marked = ({at for at, one in outputs.items() if test(one)} for test in (_is_stopped, _has_end_of_text))
    assert stopped - marked and marked - stopped
    ended = len(stopped | marked)
    assert found.end_of_text == EndOfText(24, ended)
    assert 0 < ended < 24
    manifest = json.loads((tmp_path / "corpus" / "_manifest.json").read_text())
    documents = sum(shard["documents"]["rows"] if split else shard["rows"] for shard in manifest["shards"])
    assert found.documents == documents
    assert found.contrast is not None and found.contrast.documents == 5


def test_an_unfinished_corpus_is_refused(pair: ContrastiveLM, tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "corpus") as folder:
        write_corpus(pair, numbered_seeds(2), folder, SamplingParams(max_tokens=3))
    path = tmp_path / "corpus" / "_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    with pytest.raises(InputError, match="is not finished; resume its generation first"):
        corpus_stats([tmp_path / "corpus"])
