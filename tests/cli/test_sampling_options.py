"""Sampling options of the command line: bad values are refused at once, in the command line's own words."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cdgen.cli.app import build_parser, main
from cdgen.cli.sampling import sampling_params
from cdgen.corpus.manifest import NAME
from cdgen.engine.sampling_params import SamplingParams
from tests.conftest import CommandLine


def parsed(*argv: str, bad: str = "b") -> SamplingParams:
    options = ["generate", "--good", "g", "--bad", bad, "--seeds", "s", "--out", "o"]
    return sampling_params(build_parser().parse_args([*options, *argv]))


@pytest.mark.parametrize(
    "argv",
    [
        ("--n", "1000000000"),
        ("--n", "0"),
        ("--n", "2.5"),
        ("--top-k", "4294967301"),
        ("--top-k", "-2"),
        ("--top-p", "1e-50"),
        ("--top-p", "nan"),
        ("--temperature", "1e-46"),
        ("--temperature", "1e39"),
        ("--contrast-strength", "1e300"),
        ("--contrast-strength", "-inf"),
        ("--good-weight", "1e39"),
        ("--outside-head", "-1e39"),
        ("--outside-head", "elsewhere"),
        ("--alpha", "1e-50"),
        ("--min-p", "2"),
        ("--seed", "9" * 400),
        ("--seed", "9" * 5000),
        ("--seed", "-1"),
        ("--max-tokens", "1" + "0" * 30),
        ("--min-tokens", "300"),
        ("--no-repeat-ngram-size", "1" + "0" * 30),
        ("--stop-token-ids", "99999999999"),
        ("--stop", ""),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "3"),
        ("--frequency-penalty", "nan"),
        ("--logit-bias", "5"),
        ("--logit-bias", "x=1"),
        ("--logit-bias", "5=much"),
        ("--logit-bias", "-5=1"),
        ("--logit-bias", "5=1e39"),
        ("--bad-words", " "),
    ],
    ids=lambda argv: " ".join(argv)[:40],
)
def test_a_bad_value_is_refused_at_once_and_the_flag_named(argv: tuple[str, str], tmp_path, capsys) -> None:
    out = tmp_path / "out"
    code = main(["generate", "--good", "nosuch", "--bad", "b", "--seeds", "s", "--out", str(out), *argv])
    printed = capsys.readouterr().err
    assert code == 2 and printed.count("\n") == 1 and argv[0] in printed and len(printed) < 1100
    assert not out.exists()


def test_values_that_contradict_each_other_name_both_flags() -> None:
    with pytest.raises(ValueError, match=r"^--min-p 0\.2: --alpha 0\.1 sets the same threshold"):
        parsed("--alpha", "0.1", "--min-p", "0.2")
    with pytest.raises(ValueError, match=r"^--min-tokens 9: must not exceed --max-tokens 8"):
        parsed("--min-tokens", "9", "--max-tokens", "8")
    with pytest.raises(ValueError, match=r"^--method 'top_k': with --top-k -1 this is 'ancestral'"):
        parsed("--method", "top_k", "--top-k", "-1")


@pytest.mark.parametrize("given", [("--temperature", "0"), ("--top-k", "1"), ("--alpha", "1")], ids=" ".join)
def test_equal_continuations_are_refused_unless_bad_is_noisy(given: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=rf"^--n 8: with {given[0]} {given[1]}(\.0)? all continuations .* use --n 1"):
        parsed("--n", "8", *given)
    with pytest.raises(ValueError, match=r"^--n 8: with"):
        parsed("--n", "8", "--contrast-strength", "0", *given, bad="dropout:0.3")
    assert parsed("--n", "8", *given, bad="dropout:0.3").n == 8 and parsed(*given).n == 1


def test_vllms_way_to_keep_all_tokens() -> None:
    assert parsed("--top-k", "-1") == parsed("--top-k", "0") == parsed()


def test_penalties_biases_and_bad_words() -> None:
    argv = ["--repetition-penalty", "1.2", "--presence-penalty", "-1", "--frequency-penalty", "0.5"]
    argv += ["--logit-bias", "7=2", "--logit-bias", "5=-1.5", "--bad-words", r"a\nb", "--bad-words", "the"]
    assert parsed(*argv) == SamplingParams(
        repetition_penalty=1.2,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        logit_bias={5: -1.5, 7: 2.0},
        bad_words=("a\nb", "the"),
    )


def test_a_corpus_records_what_changed_its_logits(
    folders: dict[str, Path], tmp_path: Path, cdgen_command: CommandLine
) -> None:
    """A bias that leaves one candidate shows in every row. The same command again finds the corpus complete."""
    seeds, out = tmp_path / "seeds.txt", tmp_path / "out"
    seeds.write_text("The cat\nThe dog\n")
    argv = ["generate", "--good", folders["good"], "--bad", folders["bad"], "--seeds", seeds, "--out", out]
    argv += ["--max-tokens", 4, "--ignore-eos", "--logit-bias", "40=100", "--bad-words", "river"]
    argv += ["--presence-penalty", 2, "--repetition-penalty", 0.9]
    for _ in range(2):
        code, printed = cdgen_command(*argv)
        assert code == 0, printed
    settings = json.loads((out / NAME).read_text())["settings"]
    expected = SamplingParams(presence_penalty=2.0, repetition_penalty=0.9, logit_bias={40: 100.0}, bad_words="river")
    names = ("presence_penalty", "repetition_penalty", "logit_bias", "bad_words")
    assert SamplingParams(**{name: settings[name] for name in names}) == expected
    rows = pq.read_table(out / "data").to_pylist()
    assert [row["token_ids"][-4:] for row in rows] == [[40] * 4] * 2
    code, printed = cdgen_command(*argv[:-1], 0.8)
    assert code == 2 and "repetition_penalty" in printed
