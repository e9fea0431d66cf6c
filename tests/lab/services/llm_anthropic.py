"""Anthropic's messages, whole and streamed (docs.anthropic.com, Messages and Streaming Messages)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.lab.services.llm_answer import Answer, Event, NotUnderstood, answer, words


def ask(question: Mapping[str, Any]) -> Answer:
    messages = question.get("messages")
    if not messages or "max_tokens" not in question:
        raise NotUnderstood("messages and max_tokens are required")
    last = messages[-1]["content"]
    results = [part for part in last if part["type"] == "tool_result"] if isinstance(last, list) else []
    said = next((words(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    tools = [{"name": tool["name"], "schema": tool.get("input_schema", {})} for tool in question.get("tools") or []]
    return answer(question, said, words(results[0]["content"]) if results else None, tools[0] if tools else None)


def _block(made: Answer, *, whole: bool) -> dict[str, Any]:
    if made.tool:
        given = json.loads(made.arguments) if whole else {}
        return {"type": "tool_use", "id": f"toolu_{made.id}", "name": made.tool, "input": given}
    return {"type": "text", "text": made.text if whole else ""}


def message(question: Mapping[str, Any], made: Answer, *, whole: bool = True) -> dict[str, Any]:
    return {
        "id": f"msg_{made.id}",
        "type": "message",
        "role": "assistant",
        "model": question["model"],
        "content": [_block(made, whole=True)] if whole else [],
        "stop_reason": _stop(made) if whole else None,
        "stop_sequence": None,
        "usage": {"input_tokens": made.asked, "output_tokens": made.said if whole else 1},
    }


def _stop(made: Answer) -> str:
    return "tool_use" if made.tool else "end_turn"


def events(question: Mapping[str, Any], made: Answer) -> Iterator[Event]:
    for data in _events(question, made):
        yield Event(data, data["type"])


def _events(question: Mapping[str, Any], made: Answer) -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": message(question, made, whole=False)}
    yield {"type": "content_block_start", "index": 0, "content_block": _block(made, whole=False)}
    yield {"type": "ping"}
    for piece in made.pieces:
        delta = (
            {"type": "input_json_delta", "partial_json": piece} if made.tool else {"type": "text_delta", "text": piece}
        )
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    ending = {"stop_reason": _stop(made), "stop_sequence": None}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": made.said}}
    yield {"type": "message_stop"}


def error(status: int, text: str) -> dict[str, Any]:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return {"type": "error", "error": {"type": kind, "message": text}}
