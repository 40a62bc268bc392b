"""Prompts in every form: strings, lists, arrays, tensors and encodings of transformers; anything else is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.prompts import list_prompts
from cdgen.errors import InputError

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "The fox"}]


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"])


A, B = [5, 6, 7], [8, 9]
FORMS: dict[str, tuple[Any, list[Any]]] = {
    "string": ("The", ["The"]),
    "strings": (("The", "fox"), ["The", "fox"]),
    "numpy strings": (np.array(["The", "fox"]), ["The", "fox"]),
    "ids": (A, [A]),
    "tuple": (tuple(A), [A]),
    "range": (range(5, 8), [A]),
    "lists": ([A, B], [A, B]),
    "generator": ((each for each in (A, "The", tuple(B))), [A, "The", B]),
    "array": (np.array(A, dtype=np.uint16), [A]),
    "numpy integers": ([np.int64(5), np.uint8(6), 7], [A]),
    "array of rows": (np.array([A, A]), [A, A]),
    "list of arrays": ([np.array(A), np.array(B)], [A, B]),
    "tensor": (torch.tensor(A, dtype=torch.int32), [A]),
    "tensor of rows": (torch.tensor([A, A]), [A, A]),
    "list of tensors": ([torch.tensor(A), torch.tensor(B)], [A, B]),
    "list of rows": ([torch.tensor([A]), torch.tensor([B])], [A, B]),
    "list of 0-d tensors": (list(torch.tensor(A)), [A]),
    "mapping": ({"input_ids": A}, [A]),
    "mapping of rows": ({"input_ids": [A, B], "attention_mask": [[1, 1, 1], [1, 1]]}, [A, B]),
    "left padding": ({"input_ids": [A, [0, *B]], "attention_mask": [[1, 1, 1], [0, 1, 1]]}, [A, B]),
    "right padding": ({"input_ids": torch.tensor([[*B, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}, [B]),
    "boolean mask": ({"input_ids": np.array([*B, 0]), "attention_mask": np.array([True, True, False])}, [B]),
    "mappings": ([{"input_ids": A}, {"input_ids": torch.tensor([B])}, "The"], [A, B, "The"]),
    "empty prompt": ([[]], [[]]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_prompt(name: str) -> None:
    given, wanted = FORMS[name]
    listed = list_prompts(given)
    assert listed == wanted
    assert all(type(token) is int for prompt in listed if isinstance(prompt, list) for token in prompt)


def test_arrays_and_tensors_are_continued_as_lists_are(lm: ContrastiveLM) -> None:
    params = SamplingParams(max_tokens=5, n=2)
    expected = [output.token_ids for request in lm.generate([A, B], params) for output in request.outputs]
    for prompts in ([np.array(A), torch.tensor(B)], {"input_ids": [A, B]}):
        requests = lm.generate(prompts, params)
        assert [request.prompt_token_ids for request in requests] == [A, B]
        assert [output.token_ids for request in requests for output in request.outputs] == expected


def test_a_chat_template_and_an_encoding_are_prompts(lm: ContrastiveLM) -> None:
    tokenizer, params = lm.tokenizer, SamplingParams(max_tokens=3)
    chat = {"chat_template": TEMPLATE}
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, **chat)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == 0
    encodings = (
        tokenizer.apply_chat_template(MESSAGES, return_dict=True, **chat),
        tokenizer.apply_chat_template(MESSAGES, return_dict=False, **chat),
        tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_tensors="pt", **chat),
    )
    for encoding in encodings:
        for prompts in (encoding, [encoding]):
            (request,) = lm.generate(prompts, params)
            assert request.prompt_token_ids == ids and len(request.outputs[0].token_ids) > 0
        assert lm.prompt_ids(encoding, "") == ids
    batch = tokenizer(["The fox", "The quick brown"])
    assert [request.prompt_token_ids for request in lm.generate(batch, params)] == batch["input_ids"]


REFUSED: dict[str, tuple[Any, str]] = {
    "float": ([[1.5, 2]], "prompt 0: token 0 is 1.5, of type float; token ids are integers"),
    "flat float": ([1, 2.5], "prompt 0: token 1 is 2.5"),
    "whole float": ([[1, 2.0]], "prompt 0: token 1 is 2.0"),
    "float array": (np.array([1.0, 2.0]), "prompt 0: token 0 is 1.0"),
    "float tensor": ([A, torch.tensor([1.0])], "prompt 1: token 0 is 1.0"),
    "0-d float": ([torch.tensor(1.5)], "prompt 0: token 0 is tensor"),
    "bool": ([True, False], "prompt 0: token 0 is True, of type bool"),
    "bool array": ([np.array([True])], "prompt 0: token 0 is True"),
    "numpy bool": ([[np.True_]], "prompt 0: token 0 is "),
    "none in ids": ([[1, None]], "prompt 0: token 1 is None"),
    "bytes": ([b"x"], "prompt 0: is of type bytes; give a string or a list of token ids"),
    "single bytes": (b"x", "prompts: is of type bytes"),
    "memory": (memoryview(b"x"), "prompts: is of type memoryview"),
    "tensor without data": (torch.empty(2, dtype=torch.long, device="meta"), "prompts: cannot be read: Cannot copy"),
    "bytearray": ([bytearray(b"x")], "prompt 0: is of type bytearray"),
    "dict": ({"prompt": "x"}, "prompts: is a dict without input_ids; "),
    "dicts": ([{"role": "user", "content": "x"}], r"prompt 0: .*lm\.chat"),
    "set": ({1, 2}, "prompts: is of type set"),
    "none": (None, "prompts: is of type NoneType"),
    "int": (5, "prompts: is of type int"),
    "table": (pd.DataFrame({"text": ["x"]}), "prompts: is of type DataFrame"),
    "nones": ([None], "prompt 0: token 0 is None"),
    "mixed": ([1, "x"], "prompt 0: is of type int"),
    "nested": ([[[1, 2]]], "prompt 0: token 0 is "),
    "three dimensions": (np.zeros((1, 1, 1), dtype=int), "prompt 0: token 0 is "),
    "string ids": ({"input_ids": ["ab"]}, "prompts: input_ids holds strings"),
    "rows in a row": ([{"input_ids": [A, B]}], "prompt 0: token 0 is "),
    "hole in the mask": ({"input_ids": A, "attention_mask": [1, 0, 1]}, "hides tokens between others"),
    "other mask": ({"input_ids": A, "attention_mask": [1, 1]}, "attention_mask has another shape"),
    "nested mask": ({"input_ids": A, "attention_mask": [[1], [1], [1]]}, "attention_mask has another shape"),
    "range": ([[5, 300]], "prompt 0: token id 300 is out of range"),
    "negative": ([np.array([-1])], "prompt 0: token id -1 is out of range"),
    "huge": ([[2**70]], "prompt 0: token id 1180591620717411303424 is out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused(lm: ContrastiveLM, name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        lm.generate(given, SamplingParams(max_tokens=2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", [b"x", [1.5], {"prompt": 1}, None, 3, [A, B], ["a"]])
def test_an_own_loop_gets_the_same_errors(lm: ContrastiveLM, prompt: Any) -> None:
    with pytest.raises(InputError, match=r"^mine: "):
        lm.prompt_ids(prompt, "mine")
    for form in (np.array(A), torch.tensor([A]), tuple(A), {"input_ids": A}):
        assert lm.prompt_ids(form, "mine") == A
