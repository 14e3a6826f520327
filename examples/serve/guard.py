"""What a server needs around an application: a limit on requests, and errors told in one line."""

from __future__ import annotations

import logging
from typing import Any

from fastapi.responses import JSONResponse

log = logging.getLogger("uvicorn.error")


class Guard:
    """Reads a request before the application does: at most so many bytes, or 413.

    An error that the application does not expect is the server's: 500, and a line in the log.
    """

    def __init__(self, app: Any, most_bytes: int) -> None:
        self.app = app
        self.most_bytes = most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            detail = f"expected a request of at most {self.most_bytes:,} bytes"
            await JSONResponse({"detail": detail}, 413)(scope, receive, send)
            return
        messages = iter([{"type": "http.request", "body": body}])

        async def replay() -> Any:
            return next(messages, None) or await receive()

        try:
            await self.app(scope, replay, send)
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            log.error("%s: %s", scope["path"], what[:500])
            detail = "the server could not answer; its log says why"
            await JSONResponse({"detail": detail}, 500)(scope, receive, send)

    async def _read(self, receive: Any) -> bytes | None:
        """The body, or None if it is too long."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)
