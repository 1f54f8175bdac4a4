"""What the server accepts: the routes that the page needs, requests of limited size, from the host's own name.

Gradio has routes for much else: files of its cache, proxies, streams, monitoring, histories. None of them is reachable.
"""

import asyncio
import ipaddress
import json
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from blip.serve.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = r"(/gradio_api)?"
GET = re.compile(
    rf"/|/config/?|/(assets|static)/[^\\]+|{API}/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/login_check/?|/logout"
    rf"|{API}/(info|app_id|user|login_check|startup-events|upload_progress|queue/data)/?|{API}/heartbeat/\w+"
)
POST = re.compile(rf"/login/?|{API}/(queue/join|cancel|reset|upload)/?")
UPLOAD = re.compile(rf"{API}/upload/?")
LOGIN = re.compile(r"/login/?")
MAX_BODY = 1 << 20  # bytes of a request that is no upload
MULTIPART = 1 << 16  # bytes of an upload round each of its files
BODY_SECONDS = 120  # for a request's body to arrive
LOGINS, LOGIN_SECONDS = 20, 60  # attempts at most, of all users, in this time
HEADERS = {
    # gradio's page has scripts and styles of its own inside; nothing comes from, or goes to, anywhere else
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src "
    "'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """An ASGI application round another one."""

    def __init__(self, app: App, folder: Path, limits: Limits, *, local: bool, on_disk: Callable[[], int]) -> None:
        """
        Args:
            app: gradio's.
            folder: where uploads lie; a request may name no other file.
            limits: of uploads.
            local: the server is for this computer alone; requests by another host's name are refused, since a foreign
                page could give its own name this computer's address.
            on_disk: bytes of uploads that wait in the folder.
        """
        self.app, self.folder, self.limits, self.local, self.on_disk = app, folder.resolve(), limits, local, on_disk
        self._logins: deque[float] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page needs no web sockets
            return
        request = Request(scope, receive, send)
        try:
            self._check(scope)
            await self.app(scope, await self._checked_body(request), request.send)
        except Refused as refused:
            await request.refuse(refused)
        except Exception:
            if request.refused is None:  # else it is how the application ended without the rest of the request
                raise

    def _check(self, scope: Scope) -> None:
        """Refused for another route, method or host."""
        path, method = scope["path"], scope["method"]
        allowed = GET if method in ("GET", "HEAD") else POST if method == "POST" else None
        if allowed is None or not allowed.fullmatch(path) or ".." in path:
            raise Refused(404, "there is nothing here")
        if self.local and not _is_this_computer(dict(scope["headers"]).get(b"host", b"").decode("latin-1")):
            raise Refused(421, "this server answers on this computer alone")
        if method == "POST" and LOGIN.fullmatch(path):
            now = time.monotonic()
            while self._logins and self._logins[0] < now - LOGIN_SECONDS:
                self._logins.popleft()
            if len(self._logins) >= LOGINS:
                raise Refused(429, "too many attempts: wait a minute")
            self._logins.append(now)

    async def _checked_body(self, request: "Request") -> Receive:
        """`receive` of a request whose body is limited; Refused where it is larger, or names foreign files."""
        path = request.scope["path"]
        if request.scope["method"] != "POST":
            return request.receive
        if UPLOAD.fullmatch(path):
            limit = (self.limits.max_upload_mb << 20) + self.limits.max_files * MULTIPART
            if self.on_disk() > 4 * limit:
                raise Refused(503, "too many uploads at once: try again in a minute")
            return request.limited(limit)
        body = await request.whole(MAX_BODY)
        if not LOGIN.fullmatch(path):
            self._check_files(body)
        return _replayed(body, request.receive)

    def _check_files(self, body: bytes) -> None:
        """Refused for JSON that names a file outside the uploads, or an address, which gradio would fetch."""
        try:
            waiting = [json.loads(body or b"null")]
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not JSON") from None
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if "path" in value and value["path"] is not None and not self._is_upload(value["path"]):
                    raise Refused(403, "this file was not uploaded here")
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value

    def _is_upload(self, path: object) -> bool:
        if not isinstance(path, str) or "\0" in path or not path.startswith("/"):
            return False
        return Path(path).resolve().is_relative_to(self.folder)


class Request:
    """A request with its answer: the size of the one is limited, the other gets the headers of the server."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.refused: Refused | None = None
        self._started = False

    async def send(self, message: Message) -> None:
        """Sends a part of the application's answer, unless the request was refused meanwhile."""
        if self.refused is not None and not self._started:
            await self.refuse(self.refused)
        if self.refused is not None:
            return
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": _with_headers(message.get("headers", []), self.scope["path"])}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Answers the request with a status and a sentence, if it has no answer yet."""
        self.refused = refused
        if self._started:
            return
        self._started = True
        body = refused.message.encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        headers = _with_headers(headers, self.scope["path"])
        await self._send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def limited(self, limit: int) -> Receive:
        """`receive` that counts bytes and time; Refused where there are too many."""
        length = dict(self.scope["headers"]).get(b"content-length", b"0")
        too_large = Refused(413, f"the request is larger than {limit >> 20} MiB, which is the most that is read")
        if not length.isdigit() or int(length) > limit:
            raise too_large
        count, end, whole = 0, time.monotonic() + BODY_SECONDS, False

        async def counted() -> Message:
            nonlocal count, whole
            try:
                part = await asyncio.wait_for(self.receive(), None if whole else max(0.0, end - time.monotonic()))
            except TimeoutError:
                self.refused = Refused(408, "the request took too long to arrive")
                raise self.refused from None
            count += len(part.get("body", b""))
            whole = not part.get("more_body")  # what comes then is the end of the connection
            if count > limit:
                self.refused = too_large
                raise too_large
            return part

        return counted

    async def whole(self, limit: int) -> bytes:
        """The body of a request of limited size."""
        receive, parts = self.limited(limit), []
        while True:
            part = await receive()
            if part["type"] == "http.disconnect":
                raise Refused(400, "the request ended early")
            parts.append(part.get("body", b""))
            if not part.get("more_body"):
                return b"".join(parts)


def _is_this_computer(host: str) -> bool:
    """Whether the `Host` of a request is a name or address of this computer, with any port."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives a body that was read already, then what the connection gives."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(headers: Any, path: str) -> list[tuple[bytes, bytes]]:
    own = dict(HEADERS) if path.startswith(("/assets/", "/static/")) else {**HEADERS, "cache-control": "no-store"}
    kept = [(name, value) for name, value in headers if name.decode("latin-1").lower() not in own]
    return kept + [(name.encode(), value.encode()) for name, value in own.items()]
