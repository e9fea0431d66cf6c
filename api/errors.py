"""One JSON shape for every error: `{"error": {"code": "refused", "message": "..."}}`."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable, VerbatimError

STATUS: tuple[tuple[type[VerbatimError], int, str], ...] = (
    (MalformedInput, 400, "malformed"),
    (Refused, 403, "refused"),
    (DamagedEvidence, 500, "damaged"),
    (Unavailable, 503, "unavailable"),
)
CODES = {
    400: "malformed",
    401: "unauthenticated",
    403: "refused",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
    413: "too-large",
    416: "range-not-satisfiable",
    503: "unavailable",
}


class Fault(BaseModel):
    code: str
    message: str


class ErrorBody(BaseModel):
    """The body of every error."""

    error: Fault


class Unauthenticated(VerbatimError):
    """No token, or one that does not verify."""


class NotFound(VerbatimError):
    """There is no such session, lease or route."""


class Conflict(VerbatimError):
    """The request contradicts the present state."""


def answer(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Make every error of `app` answer in the one shape."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, Unauthenticated):
            return answer(401, "unauthenticated", str(error), {"WWW-Authenticate": 'Bearer realm="verbatim"'})
        if isinstance(error, NotFound):
            return answer(404, "not-found", str(error))
        if isinstance(error, Conflict):
            return answer(409, "conflict", str(error))
        for kind, status, code in STATUS:
            if isinstance(error, kind):
                return answer(status, code, str(error), {"Retry-After": "5"} if status == 503 else None)
        return answer(500, "internal", "internal error; the appliance's log has it")

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer(error.status_code, CODES.get(error.status_code, "error"), str(error.detail), error.headers)

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        faults = (f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors())
        return answer(400, "malformed", "; ".join(faults))

    app.add_exception_handler(VerbatimError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(Exception, ours)
