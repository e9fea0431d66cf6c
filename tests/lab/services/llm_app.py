"""An API of language models that gives the same answer to the same question: no model, but the real wire formats.

    POST /v1/chat/completions   OpenAI, chat completions
    POST /v1/responses          OpenAI, responses
    POST /v1/messages           Anthropic, messages

Each answers at once or, with `"stream": true`, in server-sent events. The key is in LAB_LLM_KEY; clients show it as
`Authorization: Bearer` or `x-api-key`. The answer repeats what the user said last. With tools, the first one is called
with what the user said; once its result is there, the answer repeats that.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.lab.services import llm_anthropic, llm_openai
from tests.lab.services.llm_answer import Answer, Event, NotUnderstood

Question = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How one of the APIs reads a question, answers it whole and in a stream, and says what is wrong."""

    ask: Callable[[Question], Answer]
    whole: Callable[[Question, Answer], dict[str, Any]]
    stream: Callable[[Question, Answer], Iterator[Event]]
    error: Callable[[int, str], dict[str, Any]]


FORMATS = {
    "chat/completions": Format(llm_openai.ask_chat, llm_openai.chat, llm_openai.chat_events, llm_openai.error),
    "responses": Format(llm_openai.ask_response, llm_openai.response, llm_openai.response_events, llm_openai.error),
    "messages": Format(llm_anthropic.ask, llm_anthropic.message, llm_anthropic.events, llm_anthropic.error),
}
application = FastAPI(openapi_url=None)


def _known(request: Request) -> bool:
    shown = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    return compare_digest(shown.encode(), os.environ["LAB_LLM_KEY"].encode())


@application.post("/v1/{path:path}")
async def answer(path: str, request: Request) -> Response:
    if (format_ := FORMATS.get(path)) is None:
        return JSONResponse({"error": {"message": f"no such path: /v1/{path}"}}, 404)
    if not _known(request):
        return JSONResponse(format_.error(401, "the API key is not known"), 401)
    question = await request.json()
    try:
        made = format_.ask(question)
    except (NotUnderstood, KeyError, TypeError) as error:
        return JSONResponse(format_.error(400, f"the request is not understood: {error}"), 400)
    if question.get("stream"):
        events = (event.encode() for event in format_.stream(question, made))
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse(format_.whole(question, made))
