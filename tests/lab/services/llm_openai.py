"""OpenAI's formats: chat completions and responses, whole and streamed (platform.openai.com/docs/api-reference)."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.lab.services.llm_answer import MADE, Answer, Event, NotUnderstood, answer, words


def ask_chat(question: Mapping[str, Any]) -> Answer:
    messages = question.get("messages")
    if not messages:
        raise NotUnderstood("messages is required")
    said = next((words(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    result = words(messages[-1]["content"]) if messages[-1]["role"] == "tool" else None
    tools = question.get("tools") or []
    functions = [{"name": t["function"]["name"], "schema": t["function"].get("parameters", {})} for t in tools]
    return answer(question, said, result, functions[0] if functions else None)


def _chat_usage(made: Answer) -> dict[str, Any]:
    return {"prompt_tokens": made.asked, "completion_tokens": made.said, "total_tokens": made.asked + made.said}


def _call(made: Answer, arguments: str) -> dict[str, Any]:
    call = {"name": made.tool, "arguments": arguments}
    return {"id": f"call_{made.id}", "type": "function", "function": call}


def chat(question: Mapping[str, Any], made: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": made.text or None, "refusal": None}
    if made.tool:
        message["tool_calls"] = [_call(made, made.arguments)]
    finish = "tool_calls" if made.tool else "stop"
    return {
        "id": f"chatcmpl-{made.id}",
        "object": "chat.completion",
        "created": MADE,
        "model": question["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": _chat_usage(made),
    }


def chat_events(question: Mapping[str, Any], made: Answer) -> Iterator[Event]:
    head = {
        "id": f"chatcmpl-{made.id}",
        "object": "chat.completion.chunk",
        "created": MADE,
        "model": question["model"],
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> Event:
        return Event({**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})

    if made.tool:
        yield chunk({"role": "assistant", "content": None, "tool_calls": [{"index": 0, **_call(made, "")}]})
        for piece in made.pieces:
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    else:
        yield chunk({"role": "assistant", "content": "", "refusal": None})
        for piece in made.pieces:
            yield chunk({"content": piece})
    yield chunk({}, "tool_calls" if made.tool else "stop")
    if (question.get("stream_options") or {}).get("include_usage"):
        yield Event({**head, "choices": [], "usage": _chat_usage(made)})
    yield Event("[DONE]")


def ask_response(question: Mapping[str, Any]) -> Answer:
    given = question.get("input")
    if not given:
        raise NotUnderstood("input is required")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    said = next((words(item["content"]) for item in reversed(items) if item.get("role") == "user"), "")
    result = words(items[-1]["output"]) if items[-1].get("type") == "function_call_output" else None
    tools = [t for t in question.get("tools") or [] if t["type"] == "function"]
    functions = [{"name": tool["name"], "schema": tool.get("parameters") or {}} for tool in tools]
    return answer(question, said, result, functions[0] if functions else None)


def _item(made: Answer, status: str) -> dict[str, Any]:
    """The only item of the output."""
    done = status == "completed"
    if made.tool:
        call = {"call_id": f"call_{made.id}", "name": made.tool, "arguments": made.arguments if done else ""}
        return {"type": "function_call", "id": f"fc_{made.id}", "status": status, **call}
    content = [_part(made.text)] if done else []
    return {"type": "message", "id": f"msg_{made.id}", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response(question: Mapping[str, Any], made: Answer, status: str = "completed") -> dict[str, Any]:
    done = status == "completed"
    usage = {
        "input_tokens": made.asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": made.said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": made.asked + made.said,
    }
    return {
        "id": f"resp_{made.id}",
        "object": "response",
        "created_at": MADE,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": question.get("instructions"),
        "metadata": {},
        "model": question["model"],
        "output": [_item(made, status)] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": question.get("tools") or [],
        "top_p": 1.0,
        "usage": usage if done else None,
    }


def response_events(question: Mapping[str, Any], made: Answer) -> Iterator[Event]:
    for number, (name, data) in enumerate(_response_events(question, made)):
        yield Event({"type": name, "sequence_number": number, **data}, name)


def _response_events(question: Mapping[str, Any], made: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    begun = {"response": response(question, made, "in_progress")}
    yield "response.created", begun
    yield "response.in_progress", begun
    yield "response.output_item.added", {"output_index": 0, "item": _item(made, "in_progress")}
    where: dict[str, Any] = {"item_id": _item(made, "completed")["id"], "output_index": 0}
    if made.tool:
        for piece in made.pieces:
            yield "response.function_call_arguments.delta", {**where, "delta": piece}
        finished = {"name": made.tool, "arguments": made.arguments}
        yield "response.function_call_arguments.done", {**where, **finished}
    else:
        where["content_index"] = 0
        yield "response.content_part.added", {**where, "part": _part("")}
        for piece in made.pieces:
            yield "response.output_text.delta", {**where, "delta": piece, "logprobs": []}
        yield "response.output_text.done", {**where, "text": made.text, "logprobs": []}
        yield "response.content_part.done", {**where, "part": _part(made.text)}
    yield "response.output_item.done", {"output_index": 0, "item": _item(made, "completed")}
    yield "response.completed", {"response": response(question, made)}


def error(status: int, text: str) -> dict[str, Any]:
    kind = "invalid_api_key" if status == 401 else None
    return {"error": {"message": text, "type": "invalid_request_error", "param": None, "code": kind}}
