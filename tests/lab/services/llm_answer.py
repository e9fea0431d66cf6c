"""What the lab's language model says: a function of the question, in parts as a stream would bring them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PIECE = 12  # characters of an answer that come at a time
MADE = 1_790_000_000  # when every answer was made, so that equal questions have equal answers


class NotUnderstood(ValueError):
    """The question has not the form that the API wants."""


@dataclass(frozen=True)
class Answer:
    """`text`, or a call of `tool` with `arguments` (JSON). `id` tells questions apart."""

    id: str
    text: str
    tool: str = ""
    arguments: str = ""
    asked: int = 0  # tokens, as words

    @property
    def pieces(self) -> list[str]:
        """The text or the arguments as they are streamed."""
        whole = self.arguments if self.tool else self.text
        return [whole[at : at + PIECE] for at in range(0, len(whole), PIECE)]

    @property
    def said(self) -> int:
        """Tokens of the answer."""
        return len(self.pieces)


@dataclass(frozen=True)
class Event:
    """A server-sent event; `name` may be empty. `data` is an object, or text as it is."""

    data: Mapping[str, Any] | str
    name: str = ""

    def encode(self) -> bytes:
        text = self.data if isinstance(self.data, str) else json.dumps(self.data, ensure_ascii=False)
        return (f"event: {self.name}\n" if self.name else "").encode() + f"data: {text}\n\n".encode()


def answer(question: Mapping[str, Any], said: str, result: str | None, tool: Mapping[str, Any] | None) -> Answer:
    """`said`: the user's last words; `result`: of the tool that was called; `tool`: name and JSON schema of one."""
    identity = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:24]
    asked = len(json.dumps(question).split())
    if result is not None:
        return Answer(identity, f"The tool said: {result}", asked=asked)
    if tool is not None:
        wanted = tool.get("schema", {}).get("properties", {})
        arguments = {name: said for name, kind in wanted.items() if kind.get("type") == "string"}
        return Answer(identity, "", str(tool["name"]), json.dumps(arguments, ensure_ascii=False), asked)
    return Answer(identity, f"You said: {said}", asked=asked)


def words(content: Any) -> str:
    """The text of a message's content: a string, or parts that have a `text`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise NotUnderstood("content must be a string or a list of parts")
    return "".join(str(part.get("text", "")) for part in content)
