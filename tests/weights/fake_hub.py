"""A hub on 127.0.0.1 that speaks as much of the real one's interface as the downloader uses, and can be cut."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Files by path; `with FakeHub(...) as hub` serves them.

    Attributes:
        requests: (path, first byte asked for) of every file transfer.
        cut_after: bytes after which each transfer of a `.safetensors` file breaks off; None: never.
        refuse: answer every request with an error.
        resets_left: requests for files that end with a reset before an answer begins.
        listing: what is answered instead of the list of files; None: the list.
        pages: names of files instead of which a web page is answered.
        endless: names of files that go on and on.
        pause: seconds before each piece of a `.safetensors` file.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, int]] = []
        self.sent = 0
        self.cut_after: int | None = None
        self.cuts_left = 0
        self.refuse = False
        self.resets_left = 0
        self.corrupt: set[str] = set()
        self.listing: bytes | None = None
        self.pages: set[str] = set()
        self.endless: set[str] = set()
        self.pause = 0.0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> FakeHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        if self.refuse:
            return self._send(request, 403, b"not now")  # 5xx would be tried again for long
        if "/tree/" in path and self.listing is not None:
            return self._send(request, 200, self.listing)
        if "/tree/" in path:
            return self._send(request, 200, json.dumps([self._entry(name) for name in sorted(self.files)]).encode())
        name = path.split("/resolve/main/", 1)[-1].lstrip("/")
        if name not in self.files:
            return self._send(request, 404, b"no such file")
        return self._file(request, name)

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        data = self.files[name] if name not in self.corrupt else bytes(len(self.files[name]))
        asked = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.requests.append((name, first))
        if self.resets_left:
            self.resets_left -= 1
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close_connection = True
            request.connection.close()
            return
        if name in self.pages:
            self._send(request, 200, b"<html>Log in</html>")
            return
        if name in self.endless:
            self._go_on(request)
            return
        body = data[first:]
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.cut_after is not None and name.endswith(".safetensors") and self.cuts_left:
            self.cuts_left -= 1
            if not self.cuts_left:
                self.refuse = True
            body = body[: self.cut_after]
            request.close_connection = True
        self.sent += len(body)
        for at in range(0, len(body), 1 << 16):
            if self.pause and name.endswith(".safetensors"):
                time.sleep(self.pause)
            request.wfile.write(body[at : at + (1 << 16)])
        request.wfile.flush()
        if request.close_connection:
            request.connection.close()

    def _go_on(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(1000):
                request.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                self.sent += 1 << 16

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _entry(self, name: str) -> dict[str, object]:
        data = self.files[name]
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if name.endswith((".safetensors", ".bin", ".zst")):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry
