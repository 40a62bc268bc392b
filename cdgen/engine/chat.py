"""Chat messages as prompts, through the template of a tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from cdgen.errors import InputError, first_line
from cdgen.models.tokenizers import encode
from cdgen.values import shown, switch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, Any]  # "role" and "content"; templates may read more
_SET_BY_CHAT = {  # names of variables that chat passes to apply_chat_template itself
    "conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tools", "tokenize",
}  # fmt: skip
Tool: TypeAlias = Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class ChatTemplate:
    """How messages become a prompt; see :meth:`cdgen.ContrastiveLM.chat` for the attributes."""

    template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Tool] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def prompts(self, tokenizer: "PreTrainedTokenizerBase | None", messages: Any) -> list[list[int]]:
        """Return the token ids of one conversation, or of each in a list.

        Special tokens are those that the template writes. As in transformers and vLLM, the same strings inside a
        message are special tokens, too.

        Raises:
            InputError: there is no template, the messages are not messages, or the template refuses them.
        """
        if tokenizer is None:
            raise InputError("chat: there is no tokenizer; pass tokenizer=")
        self._check(tokenizer)
        if switch("add_generation_prompt", self.add_generation_prompt) and switch(
            "continue_final_message", self.continue_final_message
        ):
            raise InputError("continue_final_message: continues the last message, so pass add_generation_prompt=False")
        conversations, names = _listed(messages)
        found = []
        for name, conversation in zip(names, conversations, strict=True):
            checked = [_message(each, f"{name}[{at}]") for at, each in enumerate(conversation)]
            text = self._text(tokenizer, checked, name)
            if not text:
                raise InputError(f"{name}: the chat template makes no text of this conversation")
            found.append(encode(tokenizer, text, name, parse_special=True))
        return found

    def _check(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise InputError if there is no template, or an argument is of another type than the template needs."""
        named = tokenizer.chat_template if isinstance(tokenizer.chat_template, Mapping) else {}
        if self.template is None:
            if not tokenizer.chat_template:
                raise InputError("chat: the tokenizer has no chat template; pass chat_template=, or use generate")
        elif not isinstance(self.template, str) or ("{" not in self.template and self.template not in named):
            names = f", or one of the names {', '.join(named)}" if named else ""
            raise InputError(f"chat_template = {shown(self.template)}: give the text of a Jinja template{names}")
        if isinstance(self.tools, str | Mapping) or not isinstance(self.tools, Sequence | None):
            raise InputError(f"tools = {shown(self.tools)}: give a list of functions or JSON schemas")
        if not isinstance(self.variables, Mapping) or not all(isinstance(name, str) for name in self.variables):
            raise InputError(f"chat_template_kwargs = {shown(self.variables)}: give a dict with names of variables")
        if wrong := sorted(_SET_BY_CHAT & self.variables.keys()):
            raise InputError(f"chat_template_kwargs: {wrong[0]} is set by chat itself; leave it out")

    def _text(self, tokenizer: "PreTrainedTokenizerBase", conversation: list[dict[str, Any]], name: str) -> str:
        try:
            text = tokenizer.apply_chat_template(
                conversation,
                tools=self.tools and list(self.tools),
                chat_template=self.template,
                add_generation_prompt=self.add_generation_prompt,
                continue_final_message=self.continue_final_message,
                tokenize=False,
                **self.variables,
            )
        except ImportError as error:
            raise InputError(f"chat: templates need jinja2; pip install jinja2 ({first_line(error)})") from error
        except Exception as error:  # templates raise errors of jinja2, and what their expressions raise
            raise InputError(f"{name}: the chat template refuses this conversation: {first_line(error)}") from error
        return str(text)


def _listed(messages: Any) -> tuple[list[Sequence[Any]], list[str]]:
    """Return the conversations of one or a list of them, and their names for error messages."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            f"messages = {shown(messages)}: give a list of messages such as "
            '{"role": "user", "content": "Hello"}, or a list of such lists'
        )
    if all(isinstance(each, Mapping) for each in messages):
        return [messages], ["messages"]
    for index, each in enumerate(messages):
        if isinstance(each, str | Mapping) or not isinstance(each, Sequence) or not each:
            raise InputError(f"messages[{index}] = {shown(each)}: is not a list of messages")
    return list(messages), [f"messages[{index}]" for index in range(len(messages))]


def _message(message: Any, name: str) -> dict[str, Any]:
    """Return a message whose content is a string: as in vLLM, text parts are joined, and tool calls need no text."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f'{name} = {shown(message)}: is not a message such as {{"role": "user", "content": "Hello"}}')
    content = message.get("content")
    if content is None and message["role"] == "assistant" and message.get("tool_calls"):
        content = ""
    if content is None:
        raise InputError(f"{name}: has no content; give text, or leave the message out")
    if isinstance(content, str):
        return {**message, "content": content}
    listed = content if isinstance(content, Sequence) else [content]
    parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in listed]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{name}: has content that is not text, which these models do not read")
    return {**message, "content": "\n".join(parts)}
