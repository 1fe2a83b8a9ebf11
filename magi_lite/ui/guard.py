"""Who may talk to the app: one ASGI layer around everything that it serves.

The app listens on this computer, and so does every web page that this computer's browser shows. A page elsewhere can
send requests here (cross-site requests), and can make its own name point here (DNS rebinding). So:

- Requests must name a host that the app was started for.
- Only the app's own pages, and programs that are no browser, may ask for anything; another site may only link to it.
- Requests that change something carry JSON, or are uploads; a plain form, which any page may send, is neither.
- Nothing is ever looked up or fetched for a request, and files come from the folders given alone, links resolved.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from magi_lite.files import is_file
from magi_lite.sentences import count, shown
from quant.errors import brief

log = logging.getLogger(__name__)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

JSON_LIMIT_BYTES = 4_000_000
"""Of a request that is no upload: the longest timeline has a tenth of it."""
DROP_SECONDS = 2.0
"""For the rest of a request that is refused."""
SILENT_SECONDS = 60.0
"""For which nothing of a request that has begun may come."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
ANYWHERE = frozenset({"0.0.0.0", "::", ""})
"""Addresses to listen on that mean: on every network."""
READING = frozenset({"GET", "HEAD"})
API = "/gradio_api/"
OPEN = re.compile(
    r"/gradio_api/(file[=/]|(api|call|custom_component|heartbeat|queue|run)/|component_server|upload_progress|"
    r"(app_id|cancel|info|login_check|openapi\.json|reset|startup-events|theme\.css|token|upload|user)/?$)"
)
"""What page and programs use of Gradio's endpoints. Others fetch for anyone, run programs, edit apps, or keep on disk
what is asked for."""
CLOSED = re.compile(r"/(log(in|out)|monitoring)\b")
"""Others outside of its API that this app has no use for."""
_CALL = re.compile(r"/gradio_api/(?:(call/v2)|call|run|api)/([^/]+)/?")
MCP = f"{API}mcp"
"""Tools for programs; closed unless the app was started with them."""
_REMOTE = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?[/\\]{2}", re.IGNORECASE)
"""A path that leads to another computer: a URL, or a Windows share."""
FILES = (f"{API}file=", f"{API}file/")
LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes of a name and of a path that disks have; longer ones are errors of theirs, not files that are missing."""
_RANGE = re.compile(rb"bytes=(\d{1,15})?-(\d{1,15})?")
_LARGEST = 2**64
REFUSED = "magi_lite.refused"
"""Marks a request's scope: what it asked for was refused in one sentence, and the program did not fail."""
ADDED_HEADERS = (
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
)


class Hosts:
    """Names under which the app may be asked for.

    Args:
        server: what it listens on. A loopback address is asked for by loopback names alone. Elsewhere any address in
            numbers will do, which a page cannot make its own, besides this computer's name and `server` itself.
    """

    def __init__(self, server: str) -> None:
        server = server.strip("[]").lower()
        self.loopback = server in LOOPBACK or _is_loopback(server)
        """Whether only this computer reaches the app."""
        self._names = set(LOOPBACK)
        if not self.loopback:
            own = socket.gethostname().lower()
            self._names |= {server, own, f"{own.partition('.')[0]}.local"} - ANYWHERE
        self.public: set[str] = set()
        """Names that lead here from outside, such as a share link's."""

    def know(self, name: str) -> bool:
        """Whether the app may be asked for under this host name (no port)."""
        return name in self._names or name in self.public or (not self.loopback and _is_address(name))


def around(
    hosts: Hosts, folders: Iterable[Path], mcp: bool = False
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """A lifespan for a Starlette app that puts the guard around all of it before the first request is answered."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        app.middleware_stack = Guard(app.middleware_stack, hosts, folders, mcp, blocks=app.get_blocks)
        yield

    return lifespan


class Refused(Exception):
    """The request is not answered; `status` and one sentence why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Guard:
    """The layer; see the module.

    Args:
        app: what is guarded.
        hosts: names that the app goes by.
        folders: where served files and files named in requests may lie.
        mcp: whether tools are offered.
        blocks: gives Gradio's page: its functions (`fns`) and its parts (`blocks`) by their numbers.
    """

    def __init__(
        self,
        app: App,
        hosts: Hosts,
        folders: Iterable[Path],
        mcp: bool = False,
        blocks: Callable[[], Any] | None = None,
    ) -> None:
        self._app, self._hosts, self._mcp, self._blocks = app, hosts, mcp, blocks
        self._folders = tuple(Path(folder).resolve() for folder in folders)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        sent = _Body(receive)
        try:
            headers = _headers(scope)
            self._check_sender(scope, headers)
            if scope["type"] == "http":
                self._check_path(scope["path"])
                scope["headers"] = [one for one in scope["headers"] if one[0] != b"range" or _is_one_range(one[1])]
                if scope["method"] not in READING | {"OPTIONS"}:
                    receive = await self._checked_body(scope["path"], headers, sent.receive)
        except Refused as refused:
            if scope["type"] == "http":
                await sent.drop()
            await _refuse(scope, send, refused)
            return
        await self._answer(scope, receive, _with_headers(send, scope["path"]))

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let the app answer; where it stumbles over what was asked, and not over itself, say so."""
        held: list[Message] = []
        started, streaming, left = False, False, 0
        serves_file = scope["path"].startswith(FILES)

        async def sending(message: Message) -> None:
            nonlocal started, streaming, left
            if serves_file and scope.get("method") == "GET":
                left += _announced(message) - len(message.get("body", b""))
                if left > 0 and message["type"] == "http.response.body" and not message.get("more_body", False):
                    log.warning("A file was cut while it was sent: %s", scope["path"])
                    return  # a response without its end, which closes the connection
            failed = message["type"] == "http.response.start" and message["status"] == 500
            if failed and scope.get(REFUSED):  # for Gradio all errors are of the server
                message, failed = {**message, "status": 422}, False
            streaming = message.get("more_body", False)
            if held or failed:
                held.append(message)
            else:
                started = True
                await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if streaming and not held and _refused_in_midst(error):  # what there was to say has been sent
                await send({"type": "http.response.body", "body": b""})
                return
            if started and serves_file and isinstance(error, OSError | RuntimeError):
                log.warning("A file was cut while it was sent: %s", scope["path"])
                return
            refused = _fault_of_request(scope["path"], error) if held else None
            if refused is None:
                for message in held:
                    await send(message)
                raise
            await _refuse(scope, send, refused)
            return
        for message in held:
            await send(message)

    def _check_sender(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        named = [host, *filter(None, [headers.get("x-forwarded-host")])]  # Gradio builds the page's addresses on it
        if not all(self._hosts.know(_host_name(one)) for one in named):
            raise Refused(
                403, "This is not an address that the app was started for; open the one that its terminal shows."
            )
        origin = headers.get("origin")
        if origin is not None and not self._own_origin(origin, host):
            raise Refused(403, "Only the app's own pages may ask for this, not those of another site.")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            of_page = scope["type"] == "http" and scope["method"] in READING and not scope["path"].startswith(API)
            link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (of_page and link):
                raise Refused(403, "Only the app's own pages may ask for this, not those of another site.")

    def _own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        usual = ":80" if parts.scheme == "http" else ":443"
        same = parts.netloc.lower().removesuffix(usual) == host.lower().removesuffix(usual)
        return same or name in self._hosts.public

    def _check_path(self, path: str) -> None:
        known = OPEN.match(path) or not path.startswith(API) or (path.startswith(MCP) and self._mcp)
        if CLOSED.match(path) or not known:
            raise Refused(404, "There is nothing here.")
        encoded = path.encode("utf-8", "surrogatepass")
        if len(encoded) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(b"/")):
            raise Refused(404, "There is nothing here.")
        if path.startswith(FILES):
            named = path[len(FILES[0]) :]
            if not self._may_serve(named):
                raise Refused(403, "This file is not one of the app's.")
            if not is_file(named):
                raise Refused(404, "There is no such file; it may have been deleted.")

    def _may_serve(self, path: str) -> bool:
        """Whether a path, links resolved, lies in one of the folders; whether it exists is not looked at."""
        if _REMOTE.match(path) or "\0" in path:
            return False
        try:
            found = Path(os.path.realpath(path))
        except (OSError, ValueError):
            return False
        return any(found.is_relative_to(folder) for folder in self._folders)

    async def _checked_body(self, path: str, headers: dict[str, str], receive: Receive) -> Receive:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if path.rstrip("/") == f"{API}upload":
            if kind != "multipart/form-data":
                raise Refused(415, "An upload is sent as multipart/form-data.")
            return receive
        if kind != "application/json":
            raise Refused(415, "This is asked for with JSON (Content-Type: application/json).")
        body = await _read(receive, headers)
        try:
            asked = json.loads(body) if body.strip() else None
            self._check_values(asked)
            self._check_function(path, asked)
        except (ValueError, RecursionError):
            raise Refused(400, "This is no JSON that can be read.") from None
        return _replaying(body, receive)

    def _check_function(self, path: str, asked: Any) -> None:
        """Refuse a call of what is no part or function of the app, and one of an action that leaves arguments out."""
        asked = asked if isinstance(asked, dict) else {}
        blocks = self._blocks() if self._blocks else None
        functions: Mapping[int, Any] = blocks.fns if blocks else {}
        if blocks and path.rstrip("/") == f"{API}component_server":
            with suppress(ValueError, TypeError, OverflowError):  # as below
                part = int(asked.get("component_id"))
                if part not in blocks.blocks:
                    raise Refused(404, f"The page has no part {shown(part)}; load it again.")
        call, number = _CALL.fullmatch(path), asked.get("fn_index")
        if path.startswith(f"{API}call/"):  # goes by the name alone
            number = None
        if not (functions and (call or path.rstrip("/") == f"{API}queue/join")):
            return
        if number is not None:
            with suppress(ValueError, TypeError, OverflowError):  # the app says what is no number
                number = int(number)
                if number not in functions:
                    raise Refused(404, f"The app has no function {shown(number)}; {API}info lists its actions.")
        named = [one for one in functions.values() if call and one.api_name == call[2]]
        if call and number is None and not named:
            raise Refused(404, f"The app has no action called {shown(call[2])}; {API}info lists its actions.")
        found = named if number is None else [one for key, one in functions.items() if key == number]
        data = asked.get("data")
        if found and isinstance(data, list):
            wanted = sum(not block.skip_api for block in found[0].inputs)
            if len(data) < wanted:
                name = found[0].api_name
                raise Refused(422, f"{name} takes {count(wanted, 'argument')}, not {len(data)}; null leaves one out.")

    def _check_values(self, value: Any) -> None:
        """Refuse what would be fetched, files from elsewhere, and what no answer could be written from."""
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str):
                self._check_file(path, value)
            for key, part in value.items():
                self._check_values(key)
                self._check_values(part)
        elif isinstance(value, list):
            for part in value:
                self._check_values(part)
        elif isinstance(value, str):
            value.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
        elif (isinstance(value, float) and not math.isfinite(value)) or (
            isinstance(value, int) and abs(value) >= _LARGEST
        ):
            raise ValueError("a number that no answer can repeat")

    def _check_file(self, path: str, value: dict[str, Any]) -> None:
        """Refuse a file from elsewhere; one that is sent as an upload must be one, named as its upload was answered."""
        if _REMOTE.match(path) or ("meta" in value and not self._may_serve(path)):
            raise Refused(403, "Files are uploaded to the app; it fetches none from elsewhere.")
        if "meta" not in value:
            return
        from gradio.data_classes import FileData

        from magi_lite.errors import InputError
        from magi_lite.ui.uploads import received

        try:
            FileData(**value)
        except (TypeError, ValueError):
            raise Refused(422, "A file is named as the answer to its upload names it.") from None
        try:
            received(path)
        except InputError as error:
            raise Refused(403, str(error)) from None


def _is_one_range(value: bytes) -> bool:
    """Whether a Range header asks for one range; any other asks for the whole file, as the standard allows."""
    match = _RANGE.fullmatch(value)
    if match is None or not any(match.groups()):
        return False
    return None in match.groups() or int(match[1]) <= int(match[2])


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """Headers by name; one that decides is never sent twice."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin", "content-type", "content-length", "sec-fetch-site"):
            raise Refused(400, f"The request has two headers named {key}.")
        found[key] = value.decode("latin-1")
    return found


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if it is none."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/\\@\s]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]).lower() if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


async def _read(receive: Receive, headers: dict[str, str]) -> bytes:
    """A request's body, which must be small."""
    length = headers.get("content-length", "")
    body, announced, more = bytearray(), int(length) if re.fullmatch("[0-9]{1,18}", length) else 0, True
    while more and max(announced, len(body)) <= JSON_LIMIT_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The request broke off.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if more or len(body) > JSON_LIMIT_BYTES:
        raise Refused(413, f"A request may have {JSON_LIMIT_BYTES / 1e6:.0f} MB; this one has more.")
    return bytes(body)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """What `receive` gave, once more."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _announced(message: Message) -> int:
    """How many bytes the beginning of an answer says will come."""
    if message["type"] != "http.response.start":
        return 0
    return next((int(value) for name, value in message.get("headers", ()) if name.lower() == b"content-length"), 0)


def _with_headers(send: Send, path: str) -> Send:
    """Answers that other sites cannot embed, and files that run nothing when they are opened by themselves."""
    added = list(ADDED_HEADERS)
    if path.startswith(FILES):
        added.append((b"content-security-policy", b"sandbox; default-src 'none'; media-src 'self'; img-src 'self'"))

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return sending


def _fault_of_request(path: str, error: Exception) -> Refused | None:
    """What was wrong with a request that the app stumbled over; None where the app is at fault."""
    from starlette.requests import ClientDisconnect

    if isinstance(error, ClientDisconnect):
        return Refused(408, "The request broke off.")
    if path.startswith(FILES) and isinstance(error, OSError | RuntimeError):
        return Refused(404, "There is no such file; it may have been deleted.")
    if path.rstrip("/") == f"{API}upload":
        if isinstance(error, OSError):
            return Refused(507, f"The file cannot be kept ({error.strerror}); make room, or choose a smaller one.")
        if isinstance(error, TypeError | ValueError):
            return Refused(400, "An upload is made of files, each with its name.")
    if path.startswith(f"{API}call/v2/") and isinstance(error, (LookupError, TypeError, ValueError)):
        return Refused(422, f"The arguments do not fit ({brief(error, 120)}); {API}info lists them.")
    return None


def _refused_in_midst(error: Exception) -> bool:
    """Whether a stream of events ended because what was asked for is not there."""
    from starlette.exceptions import HTTPException

    return isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPException)


class _Body:
    """What `receive` gives, and whether the request has been read to its end.

    One of which nothing comes for `SILENT_SECONDS` counts as broken off: it would be waited for without end.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def receive(self) -> Message:
        if self.ended:  # what is waited for now is that whoever asks goes away
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), SILENT_SECONDS)
        except asyncio.TimeoutError:
            message = {"type": "http.disconnect"}
        self.ended = not message.get("more_body", False)
        return message

    async def drop(self) -> None:
        """Read the rest, within bounds: a connection closed on unread bytes is reset, and its answer lost."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drop(), DROP_SECONDS)

    async def _drop(self) -> None:
        dropped = 0
        while not self.ended and dropped <= JSON_LIMIT_BYTES:
            dropped += len((await self.receive()).get("body", b""))


async def _refuse(scope: MutableMapping[str, Any], send: Send, refused: Refused) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps({"detail": str(refused), "error": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers + list(ADDED_HEADERS)})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
