"""The middleware before the application: key, limits, counts, and errors told in one line."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

from fastapi.responses import JSONResponse

from csrtrain.serve.metrics import Metrics
from csrtrain.serve.settings import Settings

log = logging.getLogger("csrkern.serve")

OPEN = ("/health", "/ready")  # for those who watch over processes and have no key


class Guard:
    """Lets through what has the key, is short enough, and finds room.

    An error that the application does not expect is the server's: 500, and a line in the log.
    """

    def __init__(self, app: Any, settings: Settings, key: bytes | None, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._expected = None if key is None else b"Bearer " + key
        self._metrics = metrics
        self._held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # the client has gone

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, noting)
        finally:
            self._metrics.request(scope["path"], status, time.perf_counter() - started)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if not self._may(scope):
            headers = {"WWW-Authenticate": "Bearer"}
            detail = "expected the key of this server: Authorization: Bearer KEY"
            await JSONResponse({"detail": detail}, 401, headers)(scope, receive, send)
        elif scope["method"] != "POST":
            await self._pass_on(scope, receive, send)
        elif self._held >= self._settings.concurrency:
            detail = f"{self._held} requests are being answered; ask again in a moment"
            await JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})(scope, receive, send)
        else:
            self._held += 1
            self._metrics.in_flight.inc()
            try:
                await self._answer_post(scope, receive, send)
            finally:
                self._held -= 1
                self._metrics.in_flight.dec()

    def _may(self, scope: Any) -> bool:
        if self._expected is None or scope["path"] in OPEN:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)

    async def _answer_post(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            body = await asyncio.wait_for(self._read(receive), self._settings.timeout)
        except asyncio.TimeoutError:
            detail = f"expected the whole request within {self._settings.timeout:g} s"
            await JSONResponse({"detail": detail}, 408, {"Connection": "close"})(
                scope, receive, send
            )
            return
        except _TooLongError:
            detail = f"expected a request of at most {self._settings.max_body:,} bytes"
            await JSONResponse({"detail": detail}, 413, {"Connection": "close"})(
                scope, receive, send
            )
            return
        if body is None:
            return
        messages = iter([{"type": "http.request", "body": body}])

        async def replay() -> Any:
            return next(messages, None) or await receive()

        await self._pass_on(scope, replay, send)

    async def _pass_on(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            log.error("%s: %s", scope["path"], what[:500])
            detail = "the server could not answer; its log says why"
            await JSONResponse({"detail": detail}, 500)(scope, receive, send)

    async def _read(self, receive: Any) -> bytes | None:
        """Return the body; None if the client goes before its end."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._settings.max_body:
                raise _TooLongError
            more = message.get("more_body", False)
        return b"".join(parts)


class _TooLongError(Exception):
    pass
