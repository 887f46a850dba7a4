"""Who may speak to the page: what every request must show before anything else looks at it.

The server listens on this machine, but so does every page that a browser has open. A request must name this server as its
Host (a foreign name that resolves to this machine is DNS rebinding), and come from this server's own pages (Origin and
Sec-Fetch-Site). A reader comes in by a token that is good for one time, in the address that the terminal shows, and has a
cookie after it; beyond this machine a password as well. Every reply forbids scripts that are not the page's own, frames,
sniffing and keeping.
"""

import hmac
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
MAX_PASSWORDS = 10
ENTRY = "/open/"
READER = "stllava.reader"
"""Under this key of a request's scope stands whose cookie it brought."""
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_FORM = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>stllava</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="/static/review.css"></head>
<body class="door"><main><form method="post"><label>Password <input type="password" name="password" autofocus></label>
<button>Open</button></form></main></body></html>"""
_AGAIN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>stllava</title>
<meta http-equiv="refresh" content="0; url={path}"></head><body><a href="{path}">Open</a></body></html>"""
"""Asks for an address once more, from this server: browsers keep a strict cookie back where a link elsewhere was followed."""


@dataclass
class Door:
    """Who may come in, and who has."""

    hosts: frozenset[str]
    """What a request may call this server: host and port."""
    cookie: str
    """Name of the cookie; browsers do not tell ports apart, so it holds this server's."""
    password: str | None = None
    """What is asked beside the token; None on this machine."""
    _tokens: dict[str, str] = field(default_factory=dict)
    _sessions: dict[str, str] = field(default_factory=dict)
    _failed: int = 0

    def invite(self, reader: str) -> str:
        """The path by which a reader comes in, once."""
        token = secrets.token_urlsafe(24)
        self._tokens[token] = reader
        return ENTRY + token

    def reader_of(self, cookie: str | None) -> str | None:
        """Whose cookie it is; None of a wrong one."""
        found = None
        for secret, reader in self._sessions.items():
            if cookie is not None and hmac.compare_digest(secret.encode(), cookie.encode()):
                found = reader
        return found

    def enter(self, token: str, password: str | None) -> str | None:
        """The cookie for a token, which is good no longer; None where the token or the password is wrong."""
        known = next((one for one in self._tokens if hmac.compare_digest(one.encode(), token.encode())), None)
        if known is None:
            return None
        if self.password is not None:
            if self._failed >= MAX_PASSWORDS:
                return None
            if password is None or not hmac.compare_digest(password.encode(), self.password.encode()):
                self._failed += 1
                return None
        secret = secrets.token_urlsafe(32)
        self._sessions[secret] = self._tokens.pop(known)
        return secret

    def knows(self, token: str) -> bool:
        """Whether a token is still good."""
        return any(hmac.compare_digest(one.encode(), token.encode()) for one in self._tokens)


class Gate:
    """Lets requests through to an application that come from a reader's own page, and refuses all others."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        """Guard an application."""
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, let a reader in, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope, _limited(receive))
        refusal = self._objection(request.headers, method=request.method, path=request.url.path)
        if refusal is not None:
            await PlainTextResponse(refusal, 403)(scope, receive, guarded)
        elif request.url.path.startswith(ENTRY):
            reply = await self._enter(request, request.url.path.removeprefix(ENTRY))
            await reply(scope, receive, guarded)
        elif request.url.path.startswith("/static/"):
            await self._app(scope, receive, guarded)
        else:
            reader = self._door.reader_of(request.cookies.get(self._door.cookie))
            if reader is None:
                words = "This page opens by the address that the terminal shows, once. Start stllava again for a new one."
                await PlainTextResponse(words, 401)(scope, receive, guarded)
            else:
                scope[READER] = reader
                await self._app(scope, _limited(receive), guarded)

    def _objection(self, headers: Headers, *, method: str, path: str) -> str | None:
        """Why a request is refused whoever sent it; None where nothing speaks against it."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._door.hosts:
            return "This server has another name."
        site = headers.get("sec-fetch-site")
        is_navigation = method == "GET" and (path == "/" or path.startswith(ENTRY))
        if site not in (None, "same-origin", "none") and not is_navigation:
            return "Only this server's own pages may ask for that."
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            allowed = {f"{scheme}://{host}" for scheme in ("http", "https") for host in self._door.hosts}
            if method != "POST" or origin is None or origin.lower() not in allowed:
                return "Only this server's own pages may send that."
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > MAX_BODY:
                return "That is too long."
        return None

    async def _enter(self, request: Request, token: str) -> Response:
        """Take a token for a cookie."""
        if request.method == "HEAD":
            return _gone()  # Looking whether there is something uses up no token.
        password = None
        if request.method == "GET" and self._door.knows(token):
            if self._door.password is not None:
                return HTMLResponse(_FORM)
            if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                return HTMLResponse(_AGAIN.format(path=ENTRY + token))
        if self._door.password is not None:
            if request.method == "GET":
                return _gone()
            body = (await request.body()).decode(errors="replace")
            password = parse_qs(body).get("password", [""])[0]
        secret = self._door.enter(token, password)
        if secret is None:
            logger.warning("somebody came with a token or a password that is not good")
            return _gone()
        reply = RedirectResponse("/", 303)
        reply.set_cookie(self._door.cookie, secret, httponly=True, samesite="strict", path="/")
        return reply


def _gone() -> Response:
    return PlainTextResponse("This address was used already, or never was one. Start stllava again for a new one.", 403)


def _limited(receive: Receive) -> Receive:
    """What a request sends, cut off where it is too long: of chunks nobody says before how many there are."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY:
            return {"type": "http.disconnect"}
        return message

    return limited
