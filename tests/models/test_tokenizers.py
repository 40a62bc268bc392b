"""Tokenizers: used exactly as their files describe them, refused if they cannot be loaded, and one rule for text."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.errors import InputError
from cdgen.models.bad import first_layers
from cdgen.models.loading import load
from cdgen.models.tokenizers import encode, find_tokenizer, load_tokenizer
from cdgen.models.vocabulary import shared_vocab_size, vocabulary_size
from cdgen.training import corpora
from cdgen.training.config import TrainConfig
from cdgen.training.model import build
from cdgen.training.tokens import tokenize
from tests.helpers.checkpoints import editor
from tests.helpers.tiny_models import SENTENCES, VOCABULARY, make_llama, make_tokenizer

# ------------------------------------------------------------------------------------------------ damaged files


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half": (lambda folder: cut(folder / "tokenizer.json"), r"tokenizer\.json: cannot be read: "),
    "empty file": (lambda folder: os.truncate(folder / "tokenizer.json", 0), r"tokenizer\.json: cannot be read: "),
    "empty object": (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"tokenizer\.json: .* has no model"),
    "list": (lambda folder: (folder / "tokenizer.json").write_text("[]"), r"tokenizer\.json: is not a JSON object"),
    "not text": (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00"), r"tokenizer\.json: cannot"),
    "unknown model": (editor("tokenizer.json", model={"type": "Foo"}), r"tokenizer\.json: cannot load the tokenizer: "),
    "added tokens": (editor("tokenizer.json", added_tokens=3), r"tokenizer\.json: cannot load the tokenizer: "),
    "no entries": (
        editor("tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]),
        r"tokenizer\.json: cannot load the tokenizer: ",
    ),
    "missing": (lambda folder: os.remove(folder / "tokenizer.json"), r"neither tokenizer\.json nor another vocabulary"),
    "half a config": (lambda folder: cut(folder / "tokenizer_config.json"), r"tokenizer_config\.json: cannot be read"),
    "config list": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        r"tokenizer_config\.json: is not a JSON object",
    ),
    "config value": (editor("tokenizer_config.json", bos_token=5), r"tokenizer\.json: cannot load the tokenizer: "),
    "special tokens": (
        lambda folder: (folder / "special_tokens_map.json").write_text('{"bos_token": '),
        r"special_tokens_map\.json: cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_tokenizer_is_refused_by_every_loader(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    broken = shutil.copytree(folders["good"], tmp_path / "broken")
    if name == "no entries":
        (broken / "tokenizer_config.json").write_text("{}")
    damage(broken)
    for loader in (load, load_tokenizer, corpora.load_tokenizer):
        with pytest.raises(InputError, match=message) as caught:
            loader(broken)
        assert str(caught.value).startswith(str(broken)) and "\n" not in str(caught.value)


def test_a_broken_tokenizer_is_never_replaced_by_the_other_models(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(folders["other"], tmp_path / "broken")
    cut(broken / "tokenizer.json")
    for pair in ((broken, folders["good"]), (folders["good"], broken)):
        with pytest.raises(InputError, match=r"broken/tokenizer\.json: cannot be read"):
            ContrastiveLM(*pair)
    for tokenizer in (load_tokenizer(folders["good"]), folders["good"], str(folders["good"])):
        lm = ContrastiveLM(broken, folders["bad"], tokenizer=tokenizer)  # the broken files are not read
        assert lm.tokenizer is not None and lm.prompt_ids("The", "") == make_tokenizer()("The")["input_ids"]
    with pytest.raises(InputError, match="no such folder; give one with a tokenizer"):
        ContrastiveLM(folders["good"], tokenizer=tmp_path / "none")


def test_the_command_line_names_a_broken_tokenizer(
    folders: dict[str, Path], seeds_file: Path, tmp_path: Path, cdgen_command: Any
) -> None:
    broken = shutil.copytree(folders["good"], tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    common = ("--max-tokens", 6, "--out", tmp_path / "out", "--seeds", seeds_file)
    code, printed = cdgen_command("generate", "--good", broken, "--bad", folders["bad"], *common)
    assert code == 2 and "broken/tokenizer.json: is not a tokenizer" in printed and "Traceback" not in printed
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n".join(SENTENCES))
    argv = ("--corpus", corpus, "--tokenizer", broken, "--model", "tiny", "--out", tmp_path / "run")
    code, printed = cdgen_command("train", *argv)
    assert code == 2 and "broken/tokenizer.json: is not a tokenizer" in printed and "Traceback" not in printed


def test_a_folder_without_a_tokenizer_has_none(folders: dict[str, Path], tmp_path: Path) -> None:
    assert find_tokenizer(folders["bare"]) is None
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(folders["bare"])
    for name in (tmp_path / "none", ""):  # "" does not mean the current folder
        with pytest.raises(InputError, match="no such folder"):
            load_tokenizer(name)


# ------------------------------------------------------------------------------------------------ exactly the file's


@pytest.mark.parametrize(
    "name",
    ["GPT2TokenizerFast", "GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2TokenizerFast", "BertTokenizerFast", "None"],
)
def test_ids_are_those_that_the_tokenizers_library_gives(tmp_path: Path, name: str) -> None:
    """The classes of transformers rebuild normalizer and pre-tokenizer from their own rules."""
    own = make_tokenizer([sentence.lower() for sentence in SENTENCES])
    backend = own.backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    own.save_pretrained(tmp_path)
    make_llama(0).config.save_pretrained(tmp_path)
    editor("tokenizer_config.json", tokenizer_class=name, add_bos_token=False, add_eos_token=True)(tmp_path)
    loaded, trained = load_tokenizer(tmp_path), corpora.load_tokenizer(tmp_path).module
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*SENTENCES, "Don't STOP  now,\n\n né 12345", ""]:
        expected = reference.encode(text).ids
        assert loaded(text)["input_ids"] == trained(text)["input_ids"] == expected
        assert loaded.decode(expected) == reference.decode(expected, skip_special_tokens=False)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (0, 1)
    loaded.save_pretrained(tmp_path / "again")  # as a checkpoint does
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "again")("Now")["input_ids"] == loaded("Now")["input_ids"]
    )


def test_special_tokens_and_chat_template_come_from_the_files_beside_it(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    editor("tokenizer_config.json", pad_token="</s>", eos_token={"__type": "AddedToken", "content": "</s>"})(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token_id == loaded.eos_token_id == 1
    assert loaded.apply_chat_template([{"role": "user", "content": "The"}], tokenize=False) == "The!"


def test_code_that_comes_with_a_tokenizer_does_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_mine.py").write_text("raise SystemExit('this code ran')\n")
    editor("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenizer_mine.Mine", None]})(tmp_path)
    assert load_tokenizer(tmp_path)("The")["input_ids"] == make_tokenizer()("The")["input_ids"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(InputError, match="cannot load the tokenizer"):
        load_tokenizer(tmp_path)
    assert "[y/N]" not in "".join(capfd.readouterr())


# ------------------------------------------------------------------------------------------------ text is text


def test_a_special_token_in_a_text_is_text(folders: dict[str, Path], tmp_path: Path) -> None:
    """Prompts and training corpora use one rule."""
    lm = ContrastiveLM(folders["good"], folders["bad"])
    tokenizer = load_tokenizer(folders["good"])
    text = "The</s> fox<s>"
    prompt = lm.prompt_ids(text, "")
    assert prompt[0] == 0 and {0, 1}.isdisjoint(prompt[1:])
    assert tokenizer.decode(prompt, skip_special_tokens=True) == text
    file = tokenize(lambda: [text], tokenizer, tmp_path / "tokens", "corpus")
    assert file.tokens.tolist() == [*prompt, 1]
    (request,) = lm.generate(text, SamplingParams(max_tokens=4))
    assert request.prompt == text and request.prompt_token_ids == prompt
    parsed = lm.prompt_ids(text, "", parse_special=True)
    assert parsed.count(1) == 1 and parsed.count(0) == 2
    assert encode(tokenizer, [text, "</s>"], "") == [prompt[1:], encode(tokenizer, "</s>", "")]


def test_seeds_keep_their_special_tokens_as_text(folders: dict[str, Path], tmp_path: Path, cdgen_command: Any) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "s.txt").write_text("The</s> fox\n")
    argv = (
        "--good",
        folders["good"],
        "--bad",
        folders["bad"],
        "--seeds",
        tmp_path / "s.txt",
        "--max-tokens",
        3,
        "--quiet",
    )
    assert cdgen_command("generate", *argv, "--out", tmp_path / "text")[0] == 0
    assert cdgen_command("generate", *argv, "--out", tmp_path / "parsed", "--parse-special")[0] == 0
    shards = {name: next((tmp_path / name).rglob("*.parquet")) for name in ("text", "parsed")}
    rows = {name: pq.read_table(shard).to_pylist()[0] for name, shard in shards.items()}
    assert rows["text"]["text"].startswith("The</s> fox") and 1 not in rows["text"]["token_ids"][:-3]
    assert rows["parsed"]["text"].startswith("The fox") and 1 in rows["parsed"]["token_ids"][:-3]


@pytest.mark.parametrize("text", ["ab\ud800c", "\udcff"])
def test_an_unpaired_surrogate_is_refused(folders: dict[str, Path], tmp_path: Path, text: str) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    message = r"cannot be encoded: it contains '\\ud[8c][0f][0f]', half of a surrogate pair"
    with pytest.raises(InputError, match=f"^prompt 1: {message}"):
        lm.generate(["The", text], SamplingParams(max_tokens=4))
    with pytest.raises(InputError, match=f"^corpus: {message}"):
        tokenize(lambda: ["The", text], load_tokenizer(folders["good"]), tmp_path / "tokens", "corpus")


def test_a_text_that_a_tokenizer_cannot_encode_is_refused(good: Any, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "The": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    with pytest.raises(InputError, match=r"^prompt 0: cannot be encoded: .*Missing \[UNK\] token"):
        ContrastiveLM(good, tokenizer=tokenizer).generate("The fox", SamplingParams(max_tokens=4, contrast_strength=0))
    with pytest.raises(InputError, match=r"^corpus: cannot be encoded: .*Missing \[UNK\] token"):
        tokenize(lambda: ["fox"], tokenizer, tmp_path / "tokens", "corpus")


# ------------------------------------------------------------------------------------------------ sizes of vocabularies


def with_holes(greatest: int) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with its last entry moved to another id, so that the ids between are unused."""
    content = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = greatest
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("greatest", [400, 70_000])
def test_a_vocabulary_with_holes_counts_to_its_greatest_id(tmp_path: Path, greatest: int) -> None:
    tokenizer = with_holes(greatest)
    assert len(tokenizer) == VOCABULARY and vocabulary_size(tokenizer) == greatest + 1
    config = TrainConfig(corpus="c", tokenizer="t", out="o", model="tiny")
    assert build(config, tokenizer).config.vocab_size == greatest + 1
    word = tokenizer.convert_ids_to_tokens(greatest).replace("Ġ", " ")
    file = tokenize(lambda: [word], tokenizer, tmp_path / "tokens", "corpus")
    assert file.tokens.tolist() == [0, greatest, 1], "16 bits must be used only if every id fits"


def test_models_with_holes_in_their_vocabulary_are_decoded(tmp_path: Path) -> None:
    for seed, name in enumerate(("good", "bad")):
        make_llama(seed, vocab_size=401).save_pretrained(tmp_path / name)
        with_holes(400).save_pretrained(tmp_path / name)
    lm = ContrastiveLM(tmp_path / "good", tmp_path / "bad")
    assert lm.pair.vocab_size == 401
    (request,) = lm.generate("The", SamplingParams(n=4, max_tokens=20, ignore_eos=True))
    assert all(isinstance(output.text, str) and len(output.token_ids) == 20 for output in request.outputs)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_llama(0, vocab_size=VOCABULARY - 20).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for options in ({"dropout": 0.3}, {}):
        with pytest.raises(InputError, match="its tokenizer has 300 tokens, but the model scores 280"):
            ContrastiveLM(tmp_path, **options)
    padded = make_tokenizer()
    padded.add_special_tokens({"pad_token": "<pad>"})  # as many models of the hub do, without a row for it
    model = load(make_llama(0))[0]
    assert shared_vocab_size(model, None, padded, None) == VOCABULARY
    assert shared_vocab_size(model, first_layers(model, 1), padded, None) == VOCABULARY
    wide = load(make_llama(0, vocab_size=2 * VOCABULARY))[0]
    assert shared_vocab_size(wide, None, padded, None) == VOCABULARY + 1
    assert not caplog.records
    assert shared_vocab_size(wide, None, make_tokenizer(), None) == VOCABULARY
    assert "scores 600 tokens, but its tokenizer has only 300" in caplog.text


def test_a_byte_fallback_tokenizer_is_loaded_from_its_file(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "▁a": 4, "a": 5}
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    editor("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast", legacy=False)(tmp_path)
    assert load_tokenizer(tmp_path)("a aé")["input_ids"] == backend.encode("a aé").ids
