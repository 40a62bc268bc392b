"""Where a text ends, and what may not be drawn before."""

from itertools import pairwise

import pytest
import torch
import transformers

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.ngrams import repeated_ngram_bans
from cdgen.engine.text import StopStrings, decode_after
from cdgen.errors import InputError
from tests.helpers.tiny_models import make_llama

PROMPTS = ["The quick brown", "Once", "How do you make bread? You take flour,", [5, 6, 7]]


@pytest.fixture(scope="module")
def lm(folders):
    return ContrastiveLM(folders["good"], folders["bad"])


def free(**changes):
    return SamplingParams(**{"max_tokens": 12, "ignore_eos": True} | changes)


def test_end_of_text(tokenizer):
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

    (on,) = lm.generate("Once", SamplingParams.for_method("ancestral", n=40, max_tokens=25, ignore_eos=True))
    for output, other in zip(on.outputs, request.outputs, strict=True):
        assert len(output.token_ids) == 25 and output.finish_reason == "length"
        assert output.token_ids[: len(other.token_ids)] == other.token_ids  # the same text, gone on
    (late,) = lm.generate("Once", SamplingParams.for_method("ancestral", n=40, max_tokens=25, min_tokens=10))
    lengths = [len(output.token_ids) for output in late.outputs]
    assert min(lengths) > 10 - 1 and 1 not in [token for output in late.outputs for token in output.token_ids[:10]]
    assert any(output.finish_reason == "stop" for output in late.outputs)


def test_stop_token_ids(lm):
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


def test_stop_strings_across_tokens(lm):
    """A stop string that begins inside one token and ends inside another."""
    (plain,) = lm.generate("Once", free(n=6, max_tokens=40))
    checked = 0
    for output in plain.outputs:
        pieces = [lm.tokenizer.decode([token]) for token in output.token_ids]
        for at in range(8, 36):
            stop = pieces[at - 1][-1:] + pieces[at] + pieces[at + 1][:1]
            if "\ufffd" in stop or len(stop) < 3:
                continue
            first = output.text.find(stop)
            again = lm.continue_rows(
                [plain.prompt_token_ids], [(0, output.index)], free(max_tokens=40, stop=("never ever", stop))
            )[0]
            assert again.text == output.text[:first] and again.finish_reason == "stop"
            assert len(again.token_ids) < 40 and again.token_ids == output.token_ids[: len(again.token_ids)]
            assert stop in decode_after(lm.tokenizer, plain.prompt_token_ids, again.token_ids, True)
            assert stop not in decode_after(lm.tokenizer, plain.prompt_token_ids, again.token_ids[:-1], True), (
                "stopped late"
            )
            checked += 1
            break
    assert checked


def feed(watch, ids):
    return [watch.append(token) for token in ids]


def test_stop_strings_piece_by_piece(tokenizer):
    def watch(stop, prompt=(), **changes):
        return StopStrings(tokenizer, list(prompt), SamplingParams(stop=stop, **changes))

    ids = tokenizer("x one, two; three", add_special_tokens=False)["input_ids"]
    assert next(text for text in feed(watch(("two; th",)), ids) if text) == "x one, "
    assert next(text for text in feed(watch(("three", "; th")), ids) if text) == "x one, two"  # the earlier of two
    assert next(text for text in feed(watch(("ee", "ree")), ids) if text) == "x one, two; th"  # both in one step
    assert not any(text is not None for text in feed(watch(("four",)), ids))
    cut = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert len(cut) == 2, "a character of two tokens"
    assert feed(watch(("é",)), cut) == [None, ""]
    # a character that the prompt began
    assert feed(watch(("é",), prompt=cut[:1]), cut[1:]) in ([""], [None])
    with pytest.raises(InputError, match="need a tokenizer"):
        StopStrings(None, [], SamplingParams(stop="x"))


def test_min_tokens_holds_back_stop_strings_and_stop_tokens(lm):
    (plain,) = lm.generate("Once", free(max_tokens=30))
    ids, text = plain.outputs[0].token_ids, plain.outputs[0].text
    (held,) = lm.generate("Once", free(max_tokens=30, min_tokens=12, stop=(text[:1],)))
    assert len(held.outputs[0].token_ids) >= 12
    (held,) = lm.generate("Once", free(max_tokens=30, min_tokens=12, stop_token_ids=(ids[3],)))
    assert ids[3] not in held.outputs[0].token_ids[:12]


def test_no_ngram_comes_twice(lm):
    params = free(n=4, max_tokens=60, alpha=0.3, no_repeat_ngram_size=2)
    for request in lm.generate(PROMPTS, params):
        for output in request.outputs:
            text = request.prompt_token_ids + output.token_ids
            pairs = list(pairwise(text))[len(request.prompt_token_ids) - 1 :]
            before = list(pairwise(text))[: len(request.prompt_token_ids) - 1]
            assert len(set(pairs)) == len(pairs) and not set(pairs) & set(before)
    repeats = [o.token_ids for r in lm.generate(PROMPTS, free(n=4, max_tokens=60, alpha=0.3)) for o in r.outputs]
    assert any(len(set(pairwise(t))) < 59 for t in repeats), "the test shows nothing where none repeat by themselves"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ngram_bans_are_transformers_own(size):
    theirs = transformers.NoRepeatNGramLogitsProcessor(size)
    generator = torch.Generator().manual_seed(size)
    for length in (1, 2, 4, 9, 40):
        text = torch.randint(0, 4, (6, length), generator=generator)  # few symbols, many repeats
        start = torch.randint(0, length, (6,), generator=generator)
        history = torch.where(torch.arange(length) < start.unsqueeze(1), 0, text)
        bans = repeated_ngram_bans(history, start, size)
        for row in range(6):
            expected = theirs(history[row : row + 1, start[row] :], torch.zeros(1, 6)).isinf().nonzero()[:, 1].tolist()
            assert sorted(set(bans[row].tolist()) - {-1}) == expected
