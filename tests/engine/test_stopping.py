"""When a continuation ends, and which tokens are banned."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.bans import repeated_ngram_bans
from cdgen.engine.requests import Prompts
from cdgen.engine.text import StopStrings, decode_after
from cdgen.errors import InputError
from tests.helpers.engines import continued
from tests.helpers.sampling import free
from tests.helpers.tiny_models import make_llama

PROMPTS = ["The quick brown", "Once", "How do you make bread? You take flour,", [5, 6, 7]]


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"])


def test_end_of_text(tokenizer) -> None:
    model = make_llama(0)
    model.lm_head.weight.data[1] *= 1.2
    lm = ContrastiveLM(model, tokenizer=tokenizer)
    params = SamplingParams.for_method("ancestral", n=40, max_tokens=25)
    (request,) = lm.generate("Once", params)
    reasons = {output.finish_reason for output in request.outputs}
    assert reasons == {"stop", "length"}
    for output in request.outputs:
        ended = output.finish_reason == "stop"
        assert output.token_ids.index(1) == len(output.token_ids) - 1 if ended else 1 not in output.token_ids
        assert ended or len(output.token_ids) == 25
        assert "</s>" not in output.text

    (ignored,) = lm.generate("Once", SamplingParams.for_method("ancestral", n=40, max_tokens=25, ignore_eos=True))
    for output, other in zip(ignored.outputs, request.outputs, strict=True):
        assert len(output.token_ids) == 25 and output.finish_reason == "length"
        assert output.token_ids[: len(other.token_ids)] == other.token_ids  # the same tokens, continued
    (late,) = lm.generate("Once", SamplingParams.for_method("ancestral", n=40, max_tokens=25, min_tokens=10))
    lengths = [len(output.token_ids) for output in late.outputs]
    assert min(lengths) > 10 - 1 and 1 not in [token for output in late.outputs for token in output.token_ids[:10]]
    assert any(output.finish_reason == "stop" for output in late.outputs)


def test_stop_token_ids(lm) -> None:
    (plain,) = lm.generate("Once", free(n=8, max_tokens=30))
    stop = plain.outputs[0].token_ids[5]
    (stopped,) = lm.generate("Once", free(n=8, max_tokens=30, stop_token_ids=(stop,)))
    for output, other in zip(stopped.outputs, plain.outputs, strict=True):
        at = other.token_ids.index(stop) + 1 if stop in other.token_ids else 30
        assert output.token_ids == other.token_ids[:at]
        assert output.finish_reason == ("stop" if stop in other.token_ids else "length")
    assert stopped.outputs[0].text == decode_after(
        lm.tokenizer, plain.prompt_token_ids, stopped.outputs[0].token_ids[:-1], True
    )
    with pytest.raises(InputError, match="stop_token_ids: 300 is out of range"):
        lm.generate("Once", free(stop_token_ids=(300,)))


def test_stop_strings_across_tokens(lm) -> None:
    """The stop string begins within one token and ends within another."""
    (plain,) = lm.generate("Once", free(n=6, max_tokens=40))
    checked = 0
    for output in plain.outputs:
        pieces = [lm.tokenizer.decode([token]) for token in output.token_ids]
        for at in range(8, 36):
            stop = pieces[at - 1][-1:] + pieces[at] + pieces[at + 1][:1]
            if "\ufffd" in stop or len(stop) < 3:
                continue
            first = output.text.find(stop)
            stopped = continued(
                lm,
                Prompts([plain.prompt_token_ids]),
                [(0, output.index)],
                free(max_tokens=40, stop=("never ever", stop)),
            )[0]
            assert stopped.text == output.text[:first] and stopped.finish_reason == "stop"
            assert len(stopped.token_ids) < 40 and stopped.token_ids == output.token_ids[: len(stopped.token_ids)]
            assert stop in decode_after(lm.tokenizer, plain.prompt_token_ids, stopped.token_ids, True)
            assert stop not in decode_after(lm.tokenizer, plain.prompt_token_ids, stopped.token_ids[:-1], True), (
                "the sequence ended too late"
            )
            checked += 1
            break
    assert checked


def feed(watch: StopStrings, ids: list[int]) -> list[str | None]:
    return [watch.append(token) for token in ids]


def test_stop_strings_piece_by_piece(tokenizer) -> None:
    def watch(stop: tuple[str, ...], prompt: Sequence[int] = (), **changes: Any) -> StopStrings:
        return StopStrings(tokenizer, list(prompt), SamplingParams(stop=stop, **changes))

    ids = tokenizer("x one, two; three", add_special_tokens=False)["input_ids"]
    assert next(text for text in feed(watch(("two; th",)), ids) if text) == "x one, "
    assert next(text for text in feed(watch(("three", "; th")), ids) if text) == "x one, two"  # the first of two
    assert (
        next(text for text in feed(watch(("ee", "ree")), ids) if text) == "x one, two; th"
    )  # both end in the same step
    assert not any(text is not None for text in feed(watch(("four",)), ids))
    cut = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert len(cut) == 2, "the character must take two tokens"
    assert feed(watch(("é",)), cut) == [None, ""]
    # The prompt ends within the character.
    assert feed(watch(("é",), prompt=cut[:1]), cut[1:]) in ([""], [None])
    with pytest.raises(InputError, match="need a tokenizer"):
        StopStrings(None, [], SamplingParams(stop="x"))


def test_min_tokens_holds_back_stop_strings_and_stop_tokens(lm) -> None:
    (plain,) = lm.generate("Once", free(max_tokens=30))
    ids, text = plain.outputs[0].token_ids, plain.outputs[0].text
    (held,) = lm.generate("Once", free(max_tokens=30, min_tokens=12, stop=(text[:1],)))
    assert len(held.outputs[0].token_ids) >= 12
    (held,) = lm.generate("Once", free(max_tokens=30, min_tokens=12, stop_token_ids=(ids[3],)))
    assert ids[3] not in held.outputs[0].token_ids[:12]


def test_ignore_eos_leaves_end_of_text_to_be_drawn_before_min_tokens(lm) -> None:
    """Without min_tokens the same tokens are drawn; only `stop_token_ids` are held back."""
    draws = {"n": 40, "max_tokens": 20, "ignore_eos": True}
    plain, held = (
        lm.generate("Once", SamplingParams.for_method("ancestral", min_tokens=least, **draws))[0].outputs
        for least in (0, 15)
    )
    assert any(1 in output.token_ids[:15] for output in held)
    assert [output.token_ids for output in held] == [output.token_ids for output in plain]
    params = SamplingParams.for_method("ancestral", min_tokens=15, stop_token_ids=(1,), **draws)
    (request,) = lm.generate("Once", params)
    assert not any(1 in output.token_ids[:15] for output in request.outputs)


def test_a_stop_string_counts_if_it_is_completed_by_token_number_min_tokens(lm) -> None:
    (plain,) = lm.generate("Once", free(max_tokens=12))
    ids, text = plain.outputs[0].token_ids, plain.outputs[0].text
    watch = StopStrings(lm.tokenizer, plain.prompt_token_ids, SamplingParams(stop="none"))
    for token in ids[:6]:
        watch.append(token)
    assert watch.text and text.startswith(watch.text)
    for least, length in ((5, 6), (6, 6), (7, 12)):
        (held,) = lm.generate("Once", free(max_tokens=12, min_tokens=least, stop=(watch.text,)))
        output = held.outputs[0]
        assert output.token_ids == ids[:length]
        assert (output.finish_reason, output.text) == (("stop", "") if length == 6 else ("length", text))


def test_no_ngram_occurs_twice(lm) -> None:
    params = free(n=4, max_tokens=60, alpha=0.3, no_repeat_ngram_size=2)
    for request in lm.generate(PROMPTS, params):
        for output in request.outputs:
            text = request.prompt_token_ids + output.token_ids
            pairs = list(pairwise(text))[len(request.prompt_token_ids) - 1 :]
            before = list(pairwise(text))[: len(request.prompt_token_ids) - 1]
            assert len(set(pairs)) == len(pairs) and not set(pairs) & set(before)
    repeats = [o.token_ids for r in lm.generate(PROMPTS, free(n=4, max_tokens=60, alpha=0.3)) for o in r.outputs]
    assert any(len(set(pairwise(t))) < 59 for t in repeats), (
        "n-grams must repeat without the ban, or the test shows nothing"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ngram_bans_equal_those_of_transformers(size) -> None:
    theirs = transformers.NoRepeatNGramLogitsProcessor(size)
    generator = torch.Generator().manual_seed(size)
    for length in (1, 2, 4, 9, 40):
        history = torch.randint(0, 4, (6, length), generator=generator)  # few symbols, many repeats
        position = torch.randint(1, length + 1, (6,), generator=generator)
        bans = repeated_ngram_bans(history, position, size)
        for row in range(6):
            before = history[row : row + 1, : position[row]]
            expected = theirs(before, torch.zeros(1, 6)).isinf().nonzero()[:, 1].tolist()
            assert sorted(set(bans[row].tolist()) - {-1}) == expected
