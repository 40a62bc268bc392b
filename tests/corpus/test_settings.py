"""A corpus is not resumed if anything that decides its texts has changed, whichever file that is in."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus.settings import tokenizer_fingerprint
from cdgen.corpus.writer import write_corpus
from cdgen.errors import InputError
from cdgen.storage.folder import OutputFolder
from tests.helpers.checkpoints import editor
from tests.helpers.corpora import numbered_seeds

SEEDS = numbered_seeds(2)


def write(lm: ContrastiveLM, out: Path) -> int:
    with OutputFolder(out) as folder:
        return write_corpus(lm, SEEDS, folder, SamplingParams(max_tokens=3), shard_size=1)[1]


def in_tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return edit


CHANGES = {
    "end of text": (editor("generation_config.json", eos_token_id=7), "eos_token_ids"),
    "several ends": (editor("generation_config.json", eos_token_id=[1, 8]), "eos_token_ids"),
    "decoder": (in_tokenizer(lambda content: content.update(decoder=None)), "tokenizer"),
    "normalizer": (in_tokenizer(lambda content: content.update(normalizer={"type": "Lowercase"})), "tokenizer"),
    "config": (editor("config.json", rms_norm_eps=1e-3), "good"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_of_the_model_has_changed(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    change, setting = CHANGES[name]
    good, out = shutil.copytree(folders["good"], tmp_path / "good"), tmp_path / "out"
    write(ContrastiveLM(good, folders["bad"]), out)
    (out / "data/train-00001.parquet").unlink()
    change(good)
    with pytest.raises(InputError, match=f"out: was started with {setting} = "):
        write(ContrastiveLM(good, folders["bad"]), out)
    moved = shutil.copytree(folders["good"], tmp_path / "moved")
    assert write(ContrastiveLM(moved, folders["bad"]), out) == 1


def test_dropouts_that_differ_in_the_last_digit_are_two_bads(folders: dict[str, Path], tmp_path: Path) -> None:
    write(ContrastiveLM(folders["good"], dropout=0.3), tmp_path)
    with pytest.raises(InputError, match=r"started with bad = .*dropout:0\.3, but now bad = .*dropout:0\.30000001;"):
        write(ContrastiveLM(folders["good"], dropout=0.30000001), tmp_path)


def test_static_batches_and_another_rule_of_noise_are_other_corpora(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    write(lm, tmp_path)
    lm.static_reason = "another version of cdgen"
    with pytest.raises(InputError, match="batching = continuous, but now batching = static"):
        write(lm, tmp_path)
    lm.static_reason = None
    monkeypatch.setattr("cdgen.corpus.settings.NOISE_KEY", "place")
    with pytest.raises(InputError, match="was started by another version of cdgen, which draws other texts"):
        write(lm, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("cdgen.corpus.settings.asdict", lambda params: asdict(params) | {"new_parameter": 1})
    with pytest.raises(InputError, match="was started by another version of cdgen"):
        write(lm, tmp_path)


def test_the_fingerprint_of_a_tokenizer_is_its_content(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    first = AutoTokenizer.from_pretrained(folders["good"])
    moved = AutoTokenizer.from_pretrained(shutil.copytree(folders["good"], tmp_path / "moved"))
    other = AutoTokenizer.from_pretrained(folders["other"])
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(moved) != tokenizer_fingerprint(other)
    moved.eos_token = "the"
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(moved)
