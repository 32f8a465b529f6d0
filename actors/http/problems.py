"""What can be wrong with a request: a status, one line, and every answer in the same form."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)


class Problem(Exception):
    """A request that is answered with an error; the message is one line."""

    def __init__(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = " ".join(message.split())
        self.headers = headers or {}

    def response(self) -> JSONResponse:
        """`{"error": {"code", "message"}}`."""
        body = {"error": {"code": self.code, "message": self.message}}
        return JSONResponse(body, self.code, self.headers)


def busy(message: str = "too many requests are waiting") -> Problem:
    """429: come again in a moment."""
    return Problem(429, message, {"Retry-After": "1"})


def not_ready(message: str = "no replica of the model answers; try again") -> Problem:
    """503: nobody is there to answer."""
    return Problem(503, message, {"Retry-After": "2"})


def install(app: FastAPI) -> None:
    """Give every error of the application its one form."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, Problem):  # raised while a body was read
            return error.__cause__.response()
        words = str(error.detail or HTTPStatus(error.status_code).phrase)
        if error.status_code == 404:
            words = f"{request.url.path} does not exist; see /docs"
        return Problem(error.status_code, words, dict(error.headers or {})).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        if any(item["type"] == "json_invalid" for item in found):
            return Problem(400, "the body is not JSON").response()
        return Problem(422, explain(found)).response()

    @app.exception_handler(Exception)
    async def _fault(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed: %s: %s", type(error).__name__, error, exc_info=error)
        return Problem(500, "the server failed; the reason is in its log").response()


def explain(errors: object) -> str:
    """One line for what pydantic found."""
    found = []
    for item in errors if isinstance(errors, list | tuple) else ():
        where = ".".join(str(part) for part in item["loc"] if part != "body")
        found.append(f"{where or 'body'}: {item['msg']}")
    return "; ".join(found[:5]) or "the request is not understood"
