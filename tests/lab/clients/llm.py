"""Language models by the `openai` and `anthropic` packages: whole, streamed, and with a tool. Settings: url, key, ca.

With anthropic and `bearer` the key goes as `Authorization: Bearer`, as it does with ANTHROPIC_AUTH_TOKEN.

Both packages find the authorities that they trust as agents tell them to: by SSL_CERT_FILE.
"""

import json
import os
from typing import Any

import anthropic
import openai

from tests.lab.clients import Settings, Told, serve

MODEL = "lab-1"
ASKED = "How is the weather in Århus?"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
RESULT = "sunny ☀"


def by_openai(settings: Settings) -> Told:
    os.environ["SSL_CERT_FILE"] = settings["ca"]
    with openai.OpenAI(api_key=settings["key"], base_url=f"{settings['url']}/v1", max_retries=0) as opened:
        client: Any = opened
        refused: Any = client.with_options(api_key="wrong")
        told: Told = {"chat": _chat(client), "responses": _responses(client)}
        try:
            refused.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": ASKED}])
        except openai.AuthenticationError as error:
            told["error"] = error.status_code
        return told


def _chat(client: Any) -> Told:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}]
    whole = client.chat.completions.create(model=MODEL, messages=messages)
    pieces = client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    streamed = "".join(c.delta.content or "" for piece in pieces for c in piece.choices)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=tools).choices[0].message
    call = first.tool_calls[0]
    messages += [first, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    last = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
    return {
        "whole": whole.choices[0].message.content,
        "streamed": streamed,
        "tool": [call.function.name, json.loads(call.function.arguments)],
        "after": last.choices[0].message.content,
    }


def _responses(client: Any) -> Told:
    whole = client.responses.create(model=MODEL, input=ASKED)
    with client.responses.stream(model=MODEL, input=ASKED) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response().output_text
    tools = [{"type": "function", "name": "weather", "parameters": CITY, "strict": True}]
    (call,) = client.responses.create(model=MODEL, input=ASKED, tools=tools).output
    return {
        "whole": whole.output_text,
        "streamed": streamed,
        "final": final,
        "tool": [call.name, json.loads(call.arguments)],
    }


def by_anthropic(settings: Settings) -> Told:
    os.environ["SSL_CERT_FILE"] = settings["ca"]
    by = "auth_token" if settings.get("bearer") else "api_key"
    with anthropic.Anthropic(**{by: settings["key"]}, base_url=settings["url"], max_retries=0) as opened:
        client: Any = opened
        question: dict[str, Any] = {"model": MODEL, "max_tokens": 200}
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        whole = client.messages.create(**question, messages=messages)
        with client.messages.stream(**question, messages=messages) as stream:
            streamed = "".join(stream.text_stream)
        tools = [{"name": "weather", "input_schema": CITY}]
        with client.messages.stream(**question, messages=messages, tools=tools) as stream:
            (call,) = stream.get_final_message().content
        result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
        messages += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        last = client.messages.create(**question, messages=messages, tools=tools)
        told: Told = {
            "whole": whole.content[0].text,
            "streamed": streamed,
            "tool": [call.name, call.input],
            "after": last.content[0].text,
        }
        try:
            client.with_options(**{by: "wrong"}).messages.create(**question, messages=messages[:1])
        except anthropic.AuthenticationError as error:
            told["error"] = error.status_code
        return told


if __name__ == "__main__":
    serve({"openai": by_openai, "anthropic": by_anthropic})
