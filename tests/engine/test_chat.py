"""chat(): conversations become prompts by a template, one conversation or several, and mistakes are named."""

from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, InputError, SamplingParams
from cdgen.models.tokenizers import find_tokenizer

TEMPLATE = (
    "<s>{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}{{ mood }}"
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ASKED = [{"role": "user", "content": "The fox"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "A cat lived"}]
PARAMS = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    tokenizer = find_tokenizer(folders["good"])
    assert tokenizer is not None
    tokenizer.chat_template = TEMPLATE
    return ContrastiveLM(folders["good"], folders["bad"], tokenizer=tokenizer)


def test_conversations_are_answered_like_the_prompts_that_the_template_makes(lm: ContrastiveLM) -> None:
    text = "<s>user: The fox</s>assistant: "
    ids = lm.prompt_ids(text, "", parse_special=True)
    ids = ids[ids.count(0) - 1 :]  # the tokenizer puts a start-of-text token in front, and the template has one already
    (request,) = lm.chat(ASKED, PARAMS)
    assert request.prompt_token_ids == ids and ids.count(0) == ids.count(1) == 1
    assert request.prompt == lm.tokenizer.decode(ids)
    assert [request] == lm.generate([ids], PARAMS)
    several = lm.chat([ASKED, ANSWERED], [PARAMS, SamplingParams(max_tokens=2, ignore_eos=True)])
    assert several[0] == request and len(several[1].outputs[0].token_ids) == 2


def test_the_last_message_is_continued(lm: ContrastiveLM) -> None:
    (request,) = lm.chat(ANSWERED, PARAMS, add_generation_prompt=False, continue_final_message=True)
    assert request.prompt is not None and request.prompt.endswith("A cat lived")
    with pytest.raises(InputError, match=r"continue_final_message: .* add_generation_prompt=False"):
        lm.chat(ANSWERED, PARAMS, continue_final_message=True)


def test_what_the_template_reads(lm: ContrastiveLM) -> None:
    """Tools, other variables, parts of a message, another template, and a progress function."""

    def weather(place: str) -> str:
        """Return the weather.

        Args:
            place: where.
        """
        return place

    counted: list[int] = []
    (request,) = lm.chat(
        ASKED, PARAMS, counted.append, tools=[weather], chat_template_kwargs={"mood": "!"}, add_generation_prompt=False
    )
    assert request.prompt == lm.tokenizer.decode(
        lm.tokenizer("<s>weather!user: The fox</s>", add_special_tokens=False)["input_ids"]
    )
    assert sum(counted) == 4
    parts = [{"role": "user", "content": [{"type": "text", "text": "The"}, {"type": "text", "text": "fox"}]}]
    (request,) = lm.chat(parts, PARAMS, chat_template="{{ messages[0].content }}")
    assert request.prompt_token_ids == lm.tokenizer("The\nfox", add_special_tokens=False)["input_ids"]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    for message in (call, call | {"content": None}):
        (request,) = lm.chat([*ASKED, message], PARAMS, chat_template="fox{{ messages[1].content }}")
        assert request.prompt == "fox"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("Hello", r"messages = 'Hello': give a list of messages"),
        ([], r"messages = \[\]: give a list of messages"),
        (ASKED[0], r"messages = \{.*give a list of messages"),
        ([ASKED, []], r"messages\[1\] = \[\]: is not a list of messages"),
        ([ASKED, "Hello"], r"messages\[1\] = 'Hello': is not a list of messages"),
        ([ASKED, ["Hello"]], r"messages\[1\]\[0\] = 'Hello': is not a message"),
        ([{"content": "Hello"}], r"messages\[0\] = .*is not a message"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\]: has content that is not text"),
        ([*ASKED, {"role": "assistant", "content": None}], r"messages\[1\]: has no content; give text"),
        ([{"role": "user"}], r"messages\[0\]: has no content"),
        ([{"role": "user", "content": None, "tool_calls": [{"id": "1"}]}], r"messages\[0\]: has no content"),
        ([{"role": "system", "content": "Hello"}], r"messages: the chat template refuses .*: no system role"),
        ([ASKED, [{"role": "system", "content": "Hello"}]], r"messages\[1\]: the chat template refuses"),
    ],
)
def test_mistakes_are_one_line(lm: ContrastiveLM, messages: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"^{reason}") as caught:
        lm.chat(messages, PARAMS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"chat_template": "template.jinja"}, "chat_template = 'template.jinja': give the text of a Jinja template"),
        ({"chat_template": TEMPLATE.encode()}, "chat_template = b.*: give the text of a Jinja template"),
        ({"chat_template": "{% set empty = 1 %}"}, "messages: the chat template makes no text of this conversation"),
        ({"chat_template": "{{ raise_exception('\x1b[31m') }}"}, r"messages: the chat template .*: \\x1b\[31m$"),
        ({"tools": {"name": "weather"}}, "tools = .*: give a list of functions or JSON schemas"),
        ({"tools": 5}, "tools = 5: give a list"),
        ({"chat_template_kwargs": [("mood", "!")]}, "chat_template_kwargs = .*: give a dict"),
        ({"chat_template_kwargs": {5: "!"}}, "chat_template_kwargs = .*: give a dict"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs: tokenize is set by chat itself"),
    ],
)
def test_wrong_arguments_are_named(lm: ContrastiveLM, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=f"^{reason}"):
        lm.chat(ASKED, PARAMS, **options)


def test_a_template_of_several_is_chosen_by_name(folders: dict[str, Path]) -> None:
    tokenizer = find_tokenizer(folders["good"])
    assert tokenizer is not None
    tokenizer.chat_template = {"short": "{{ messages[0].content }}", "tool": TEMPLATE}
    lm = ContrastiveLM(folders["good"], folders["bad"], tokenizer=tokenizer)
    assert lm.chat(ASKED, PARAMS, chat_template="short")[0].prompt == "The fox"
    with pytest.raises(InputError, match=r"^chat_template = 'long': .* or one of the names short, tool$"):
        lm.chat(ASKED, PARAMS, chat_template="long")


def test_a_template_is_needed(folders: dict[str, Path], lm: ContrastiveLM) -> None:
    plain = ContrastiveLM(folders["good"], folders["bad"])
    with pytest.raises(InputError, match="chat: the tokenizer has no chat template; pass chat_template="):
        plain.chat(ASKED, PARAMS)
    with pytest.raises(InputError, match="messages: the chat template refuses"):
        plain.chat(ASKED, PARAMS, chat_template="{% if")
    with pytest.raises(InputError, match="chat: there is no tokenizer"):
        ContrastiveLM(folders["bare"]).chat(ASKED, PARAMS, chat_template=TEMPLATE)


def test_a_missing_jinja2_is_named(lm: ContrastiveLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("apply_chat_template requires jinja2 to be installed.")

    monkeypatch.setattr(type(lm.tokenizer), "apply_chat_template", missing)
    with pytest.raises(InputError, match=r"chat: templates need jinja2; pip install jinja2"):
        lm.chat(ASKED, PARAMS)
