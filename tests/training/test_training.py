"""Training: the loss curve of transformers' Trainer, perplexities, corpora, and mistakes, each reported in one line."""
# ruff: noqa: F401, F811 (fixtures are imported)

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from cdgen import ContrastiveLM, SamplingParams, TrainConfig, train
from cdgen.cli import main
from cdgen.corpus.find import find
from cdgen.errors import CorpusError, InputError
from cdgen.storage import runs
from cdgen.training import corpora
from cdgen.training.config import FIELDS, PRESETS
from cdgen.training.mixture import Mixture
from cdgen.training.model import build, operations_per_token, parameter_groups
from cdgen.training.tokens import Pool
from tests.helpers.small_runs import (
    BATCH,
    BLOCK,
    command,
    data,
    documents,
    log_of,
    settings,
    uninterrupted,
    write_config,
    write_parquet,
)
from tests.helpers.tiny_models import VOCABULARY, make_tokenizer

# ------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.slow
def test_the_loss_curve_equals_that_of_transformers_trainer(settings, tmp_path) -> None:
    """Trainer trains for 100 steps from the same weights on the same blocks, with its own loop and the plain loss."""
    config = TrainConfig(**settings(tmp_path / "run", steps=100, save_every=100))
    train(config)
    ours = [record["loss"] for record in log_of(tmp_path / "run") if "loss" in record]

    tokenizer = corpora.load_tokenizer(config.tokenizer)
    pools = [
        Pool([corpora.token_file(find(name), tokenizer)], BLOCK, config.seed, "", stream)
        for stream, name in enumerate((config.corpus, config.synthetic[0]))
    ]
    mixture = Mixture(*pools, BATCH, 0.3, config.seed)
    rows = [{"input_ids": row, "labels": row} for step in range(100) for row in mixture.blocks(step)]

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), use_cpu=True, max_steps=100, per_device_train_batch_size=BATCH // 2,
        gradient_accumulation_steps=2, learning_rate=1e-3, weight_decay=0.1, warmup_steps=15, logging_steps=1,
        lr_scheduler_type="cosine", report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = InOrder(build(config, tokenizer.module), arguments, train_dataset=rows)
    trainer.train()
    theirs = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    rates = [record["learning_rate"] for record in trainer.state.log_history if "loss" in record]
    assert len(theirs) == len(ours) == 100 and ours[-1] < ours[0] - 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert [r["learning_rate"] for r in log_of(tmp_path / "run") if "loss" in r] == pytest.approx(rates, abs=1e-12)
    mine = load_file(tmp_path / "run" / "step_000100" / "model.safetensors")
    for name, weight in trainer.model.state_dict().items():
        assert (mine[name] - weight).norm() <= 1e-3 * weight.norm(), name


@pytest.mark.slow
def test_perplexity_is_that_of_the_saved_model(uninterrupted, data) -> None:
    """transformers loads the checkpoints and computes it over all blocks of the test text."""
    run = json.loads((uninterrupted / "run.json").read_text())
    tokenizer = corpora.load_tokenizer(data / "tokenizer")
    pool = Pool([corpora.token_file(find(data / "real", "test"), tokenizer)], BLOCK, 0, "")
    blocks = torch.from_numpy(np.stack([pool.block(number) for number in range(pool.blocks)]))
    for entry in (run["checkpoints"][0], run["checkpoints"][-1]):
        model = AutoModelForCausalLM.from_pretrained(uninterrupted / f"step_{entry['step']:06d}").eval()
        with torch.no_grad():
            logits = model(blocks).logits[:, :-1]
        assert entry["perplexity"] == pytest.approx(
            math.exp(cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())), rel=1e-5
        )


def test_the_same_parameters_decay_as_in_trainer() -> None:
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=2, attention_bias=True))  # fmt: skip
    due = set(Trainer.get_decay_parameter_names(None, lm))
    decays, rest = parameter_groups(lm, 0.1)
    names = {id(x): name for name, x in lm.named_parameters()}
    assert {names[id(x)] for x in decays["params"]} == due and decays["weight_decay"] == 0.1
    assert {names[id(x)] for x in rest["params"]} == set(names.values()) - due and rest["weight_decay"] == 0


def test_presets_have_the_papers_sizes() -> None:
    """Presets with larger factors are smaller, counted without embeddings."""

    class Tokenizer:
        bos_token_id, eos_token_id = 0, 1

        def get_vocab(self) -> dict[str, int]:
            return {f"word{number}": number for number in range(32_000)}

    made = {}
    for name in PRESETS:
        with torch.device("meta"):
            made[name] = build(TrainConfig("corpus", "tokenizer", "out", model=name), Tokenizer())
    inner = {name: sum(x.numel() for x in lm.model.layers.parameters()) for name, lm in made.items()}
    good = made["paper"]
    assert (good.config.num_hidden_layers, good.config.hidden_size, good.config.intermediate_size) == (12, 768, 3072)
    assert good.config.max_position_embeddings == 1024 and not good.config.tie_word_embeddings
    with torch.device("meta"):
        short = build(TrainConfig("corpus", "tokenizer", "out", model="tiny", block_size=128), Tokenizer())
    assert short.config.max_position_embeddings == 128, "positions that it is not trained on are not used"
    assert good.lm_head.weight.shape == (32_000, 768)
    smaller = [name for name in PRESETS if name.startswith("paper")]
    assert sorted(smaller, key=inner.get, reverse=True) == smaller
    # weights of layers, norms and output layer; attention's products with keys and with values
    products = inner["paper"] + 768 + 32_000 * 768
    assert operations_per_token(good, 1024) == 6 * products + 12 * 12 * 768 * 1024


@pytest.mark.slow
def test_bfloat16_has_nearly_the_same_loss_curve(settings, tmp_path) -> None:
    """Only products are computed in bfloat16; weights stay in float32."""
    curves = {}
    for dtype in ("float32", "bfloat16"):
        train(TrainConfig(**settings(tmp_path / dtype, steps=40, dtype=dtype)))
        curves[dtype] = [record["loss"] for record in log_of(tmp_path / dtype) if "loss" in record]
    assert curves["float32"] != curves["bfloat16"]
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"], rtol=0.02)
    weights = load_file(tmp_path / "bfloat16" / "step_000040" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_products_on_a_gpu_are_in_bfloat16_by_default(settings, tmp_path, monkeypatch, caplog) -> None:
    """No GPU is needed: PartialState is made to report one, and training still runs on the CPU."""
    given = settings(tmp_path / "gpu", steps=1, warmup_steps=1)
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr("cdgen.training.trainer.PartialState", lambda cpu: on_gpu)
    with caplog.at_level("WARNING", "cdgen"):
        train(TrainConfig(**given))
        assert runs.read(tmp_path / "gpu")["config"]["dtype"] == "bfloat16"
        (said,) = caplog.messages
        assert said == "matrix products in bfloat16, weights in float32; use dtype='float32' for float32 products"
        caplog.clear()
        train(TrainConfig(**given | {"out": str(tmp_path / "asked"), "dtype": "bfloat16"}))
        monkeypatch.undo()
        train(TrainConfig(**given | {"out": str(tmp_path / "cpu")}))
        assert runs.read(tmp_path / "cpu")["config"]["dtype"] == "float32" and caplog.messages == []


def test_a_checkpoint_is_contrasted_with_an_earlier_one(uninterrupted) -> None:
    """GOOD is the best checkpoint of a run and BAD an earlier one; both come with their tokenizer."""
    lm = ContrastiveLM(f"{uninterrupted}@best", f"{uninterrupted}@40")
    plain = SamplingParams(max_tokens=8, temperature=0, contrast_strength=0, ignore_eos=True)
    found = lm.generate(["Once upon"], plain)[0].outputs[0].token_ids
    prompt = torch.tensor([lm.prompt_ids("Once upon", "")])
    best = runs.resolve(f"{uninterrupted}@best")
    model = AutoModelForCausalLM.from_pretrained(best)
    due = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    assert found == due[prompt.shape[1] :].tolist()
    assert len(lm.generate(["Once upon"], SamplingParams(max_tokens=8, ignore_eos=True))[0].outputs[0].token_ids) == 8


def test_tensorboard_has_the_values_of_the_log(settings, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(TrainConfig(**settings(tmp_path / "run", steps=5, tensorboard=True)))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("loss")
    due = [record["loss"] for record in log_of(tmp_path / "run") if "loss" in record]
    assert [event.step for event in found] == [1, 2, 3, 4, 5] and [event.value for event in found] == pytest.approx(due)


# ------------------------------------------------------------------------------------------------ corpora


def test_the_documents_of_a_generated_corpus_are_read(folders, tmp_path, seeds_file, caplog) -> None:
    argv = ["generate", "--good", folders["good"], "--method", "ancestral", "--seeds", seeds_file, "--max-tokens", 20,
            "--ignore-eos", "--quiet"]  # fmt: skip
    for split in ([], ["--split-documents"]):
        assert main(list(map(str, [*argv, "--out", tmp_path / f"corpus{len(split)}", *split]))) == 0
    whole, cut = (find(tmp_path / f"corpus{number}") for number in (0, 1))
    assert "corpus0: its texts continue after end-of-text tokens" in caplog.text and "corpus1" not in caplog.text
    for corpus, name in ((whole, "data/train-00000.parquet"), (cut, "_documents/00000.parquet")):
        rows = pq.read_table(tmp_path / corpus.name / name)["text"].to_pylist()
        assert list(corpus.texts()) == rows
    manifest = json.loads((tmp_path / "corpus1" / "_manifest.json").read_text())
    (tmp_path / "corpus1" / "_manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    with pytest.raises(InputError, match="corpus1: is not finished"):
        find(tmp_path / "corpus1")
    shard = tmp_path / "corpus0" / "data/train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorpusError, match=r"train-00000\.parquet: is missing, truncated or altered"):
        find(tmp_path / "corpus0")


# ------------------------------------------------------------------------------------------------ mistakes

MISTAKES = {
    "no such corpus": (["--corpus", "nowhere"], "nowhere: no such file or folder"),
    "empty corpus": (["--corpus", "empty.jsonl"], "empty.jsonl: holds no documents"),
    "short corpus": (["--corpus", "short.jsonl"], "corpus short.jsonl: has 5 tokens, fewer than one block of 32; give"),
    "short test": (["--test", "short.jsonl"], "test short.jsonl: has 5 tokens, fewer than one block of 32"),
    "no texts": (["--corpus", "shape"], "shape: holds neither train.parquet, nor a generated corpus, nor a dataset"),
    "no tokenizer": (["--tokenizer", "shape"], "shape: holds no tokenizer"),
    "no end of text": (["--tokenizer", "bare"], "the tokenizer has no BOS or no EOS token"),
    "unknown preset": (["--model", "papre"], "model = 'papre': use paper, paper-5x"),
    "small vocabulary": (["--model", "small"], "small': has a vocabulary of 200, but the tokenizer"),
    "small context": (["--block-size", 128], "block_size = 128: the model"),
    "scaled logits": (["--model", "scaled"], "does more to its logits than a matrix product"),
    "ratio": (["--ratio", 1.5], "ratio = 1.5: must be 0 to 1"),
    "no synthetic row": (["--ratio", 0.1], "ratio = 0.1: none of the 8 rows of a batch is synthetic"),
    "steps": (["--steps", 0], "steps = 0: must be 1 to "),
    "dtype": (["--dtype", "float16"], "--dtype: invalid choice: 'float16'"),
    "diverging": (["--learning-rate", 1e30], " is nan; lower learning_rate"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_reported_in_one_line(name, settings, data, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "shape")
    write_config(tmp_path / "small", vocab_size=200)
    CohereConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                 num_attention_heads=2, max_position_embeddings=64).save_pretrained(tmp_path / "scaled")  # fmt: skip
    make_tokenizer(bos=False).save_pretrained(tmp_path / "bare")
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "short.jsonl").write_text('{"text": "time"}\n')
    extra, due = MISTAKES[name]
    capfd.readouterr()  # drops what transformers printed about the configs above
    assert main(list(map(str, [*command(settings("run")), *extra, "--quiet"]))) == 2
    error = capfd.readouterr().err
    assert error.startswith("cdgen: error: ") and error.count("\n") == 1 and due in error, error
    assert name == "diverging" or not (tmp_path / "run").exists()


@pytest.mark.parametrize(("error", "reason"), [(OSError(), "OSError"), (ValueError("\n \n why\nmore"), "why")])
def test_a_tokenizer_error_without_a_message_is_reported(error, reason, data, monkeypatch) -> None:
    def fail(folder: Path, **options: object) -> None:
        raise error

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", fail)
    with pytest.raises(InputError, match=rf"tokenizer\.json: cannot load the tokenizer: .*{reason}$"):
        corpora.load_tokenizer(data / "tokenizer")


def test_a_run_is_not_resumed_with_another_configuration(settings, uninterrupted, data, tmp_path) -> None:
    given = settings(uninterrupted)
    for name, value in (("seed", 43), ("ratio", 0.5), ("steps", 300), ("block_size", 16), ("synthetic", [])):
        with pytest.raises(
            InputError, match=f"{uninterrupted}: was started with {name} = .*, but now {name} = "
        ) as error:
            train(TrainConfig(**given | {name: value}))
        assert str(error.value).endswith("; use the same value, or choose another folder")
    shutil.copytree(data / "real", tmp_path / "moved")
    before = (uninterrupted / "log.jsonl").read_text()
    train(
        TrainConfig(**given | {"corpus": str(tmp_path / "moved"), "micro_batch_size": 8})
    )  # the same text in another folder
    assert (uninterrupted / "log.jsonl").read_text() == before, "there was nothing left to train"
    write_parquet(tmp_path / "moved" / "train.parquet", documents(100, 7))
    with pytest.raises(InputError, match=r"was started with corpus = .*real, but now corpus = .*moved"):
        train(TrainConfig(**given | {"corpus": str(tmp_path / "moved")}))


def test_checkpoints_without_run_json_are_not_overwritten(settings, tmp_path) -> None:
    (tmp_path / "run" / "step_000040").mkdir(parents=True)
    with pytest.raises(CorpusError, match="step_000040: is in the way, and no manifest lists it"):
        train(TrainConfig(**settings(tmp_path / "run")))


def test_every_field_is_an_option(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{field.name.replace('_', '-')}" in shown for field in FIELDS)
