"""What can be wrong with a request: a status, one line, and every answer in the same form.

Processes that only read bodies import this and not the framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

LONGEST_LINE = 280  # characters of a message
LONGEST_WORD = 60  # of what it repeats of a request
PROTOCOL = "/v2"  # below it, errors are those of the Open Inference Protocol
MOST_FAULTS = 5  # that one message lists


def cut(text: object, longest: int = LONGEST_WORD) -> str:
    """Text of a request for a message or a log: one line, valid UTF-8, printable, not long."""
    start = str(text)[: longest + 1].encode("utf-8", "replace").decode()
    line = "".join(c if c.isprintable() else " " for c in start)
    return f"{line[:longest]}…" if len(line) > longest else line


class Problem(Exception):
    """A request that is answered with an error; the message is one line."""

    def __init__(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = cut(" ".join(message.split()), LONGEST_LINE)
        self.headers = headers or {}

    def response(self, scope: Mapping[str, Any]) -> JSONResponse:
        """`{"error": {"code", "message"}}`, and `{"error": "message"}` where a protocol has it so.

        Args:
            scope: of the request.
        """
        from fastapi.responses import JSONResponse

        error: object = {"code": self.code, "message": self.message}
        if path_of(scope).startswith(PROTOCOL):
            error = self.message
        return JSONResponse({"error": error}, self.code, self.headers)


def path_of(scope: Mapping[str, Any]) -> str:
    """A request's path below where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    inside = bool(root) and (path == root or path.startswith(f"{root}/"))
    return path[len(root) :] if inside else path


def busy(message: str = "too many requests are waiting") -> Problem:
    """429: come again in a moment."""
    return Problem(429, message, {"Retry-After": "1"})


def not_ready(message: str = "no replica of the model answers; try again") -> Problem:
    """503: nobody is there to answer."""
    return Problem(503, message, {"Retry-After": "2"})


def unknown_task(name: str) -> Problem:
    """404 for a domain."""
    return Problem(404, f"task '{cut(name)}' is not learned; GET /v1/tasks lists those that are")


def install(app: FastAPI) -> None:
    """Give every error of the application its one form."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> JSONResponse:
        return problem.response(request.scope)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, Problem):  # raised while a body was read
            return error.__cause__.response(request.scope)
        words = str(error.detail or HTTPStatus(error.status_code).phrase)
        if error.status_code == 404:
            words = f"{cut(request.scope['path'])} does not exist; see /docs"
        problem = Problem(error.status_code, words, dict(error.headers or {}))
        return problem.response(request.scope)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        if any(item["type"] == "json_invalid" for item in found):
            return Problem(400, "the body is not JSON").response(request.scope)
        return Problem(422, explain(found)).response(request.scope)


def explain(errors: Sequence[Any]) -> str:
    """One line for what pydantic found."""
    found = []
    for item in errors[:MOST_FAULTS]:
        where = ".".join(cut(part) for part in item["loc"] if part != "body")
        found.append(f"{where or 'body'}: {cut(item['msg'], 120)}")
    return "; ".join(found) or "the request is not understood"
