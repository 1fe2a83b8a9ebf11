"""Attacks on the running app: other sites in a real browser, other names, forged requests, files from elsewhere."""

from __future__ import annotations

import asyncio
import functools
import http.client
import http.server
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect

from magi_lite.ui import guard, uploads
from magi_lite.ui.guard import Hosts
from tests.conftest import ARGUMENTS
from tests.ui.conftest import ROOT, WAIT, App, heed_ctrl_c, patient

JSON = {"Content-Type": "application/json"}


def ask(app: App, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and text of one raw request, sent in one piece; headers as given, nothing added but a length."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    named = {"Host": f"127.0.0.1:{app.port}"} | {key.replace("_", "-"): value for key, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in named.items() if value)]
    if data is not None:
        lines.append(f"Content-Length: {len(data)}")
    with socket.create_connection(("127.0.0.1", app.port), timeout=WAIT / 1000) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (data or b""))
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        return answer.status, answer.read().decode(errors="replace")


@functools.cache
def config(url: str) -> dict[str, Any]:
    """What the page is made of."""
    with urllib.request.urlopen(url + "config", timeout=WAIT / 1000) as answer:
        return json.load(answer)


@functools.cache
def program(url: str) -> Client:
    """A program that uses the app."""
    return Client(url, verbose=False)


def panel_call(app: App, name: str) -> dict[str, Any]:
    """The body with which a panel's script calls one of its actions."""
    for component in config(app.url)["components"]:
        functions = component["props"].get("server_fns") or component["props"].get("server_functions") or []
        if name in functions:
            return {"component_id": component["id"], "fn_name": name, "session_hash": "s", "data": None}
    raise AssertionError(f"no panel has {name}")


def held(app: App) -> bool:
    return program(app.url).predict(api_name="/queue")["held"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.", "", "a@127.0.0.1"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/config"), ("OPTIONS", "/"), ("POST", "/gradio_api/queue/join")]
)
def test_other_names_are_not_answered(app: App, host: str, method: str, path: str) -> None:
    status, text = ask(app, method, path, {} if method == "POST" else None, Host=host.format(port=app.port), **JSON)
    assert status in (400, 403) and "components" not in text


def test_a_refusal_is_heard_by_those_who_send_much(app: App) -> None:
    for _ in range(5):
        status, text = ask(app, "POST", "/gradio_api/queue/join", b" " * 3_000_000, Host="evil.example", **JSON)
        assert status == 403 and "address" in text


def test_a_refusal_does_not_wait_for_what_never_comes(app: App) -> None:
    head = "POST /gradio_api/queue/join HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100\r\n\r\nhalf"
    with socket.create_connection(("127.0.0.1", app.port), timeout=WAIT / 1000) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST"])
def test_names_of_this_computer_are(app: App, host: str) -> None:
    assert ask(app, "GET", "/config", Host=host.format(port=app.port))[0] == 200


def test_two_hosts_are_none(app: App) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", app.port)
    connection.putrequest("GET", "/config", skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{app.port}")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status == 400


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_the_page_is_built_for_no_other_name(app: App, path: str) -> None:
    """Gradio takes addresses from what a proxy says that it was asked for."""
    status, text = ask(app, "GET", path, X_Forwarded_Host="evil.example", X_Forwarded_Proto="https")
    assert status == 403 and "evil" not in text
    status, text = ask(app, "GET", "/config", X_Forwarded_Host=f"localhost:{app.port}")
    assert status == 200 and json.loads(text)["root"] == f"http://localhost:{app.port}"


def test_which_names_an_address_to_listen_on_gives() -> None:
    everywhere, one, name = Hosts("0.0.0.0"), Hosts("127.0.0.1"), Hosts("studio.lan")
    assert everywhere.know("192.168.1.7") and everywhere.know("localhost") and not everywhere.know("evil.example")
    assert not one.know("192.168.1.7") and one.know("::1")
    assert name.know("studio.lan") and not name.know("studio.lan.evil.example")
    one.public.add("abc.gradio.live")
    assert one.know("abc.gradio.live") and not one.know("xyz.gradio.live")


FOREIGN: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1.evil.example:{port}"},
    {"Origin": "file://"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize(
    "path", ["component_server", "queue/join", "run/hold", "call/hold", "api/hold", "upload", "cancel"]
)
def test_other_sites_change_nothing(app: App, headers: dict[str, str], path: str) -> None:
    headers = {key: value.format(port=app.port) for key, value in headers.items()}
    kinds = ("application/json", "text/plain", "multipart/form-data; boundary=x")
    for kind in kinds:
        body = {**panel_call(app, "hold"), "data": {"held": True}} if path == "component_server" else {"data": [True]}
        status, _ = ask(app, "POST", f"/gradio_api/{path}", body, **headers, Content_Type=kind)
        assert status == 403
    assert held(app) is False


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize("path", ["component_server", "component_server/", "run/hold", "call/hold", "queue/join"])
def test_what_a_form_could_send_is_refused(app: App, kind: str, path: str) -> None:
    body = {**panel_call(app, "hold"), "data": {"held": True}} if "component" in path else {"data": [True]}
    assert ask(app, "POST", f"/gradio_api/{path}", body, Content_Type=kind)[0] == 415
    assert held(app) is False


def test_the_same_call_in_json_is_obeyed(app: App) -> None:
    for value in (True, False):
        body = {**panel_call(app, "hold"), "data": {"held": value}}
        assert ask(app, "POST", "/gradio_api/component_server", body, Content_Type="application/json")[0] == 200
        assert held(app) is value


@pytest.mark.parametrize(
    "body",
    [b"{", b"[" * 100_000, b'"\\ud800"', b"1" + b"0" * 30, b'{"a": ' + b"9" * 5000 + b"}", b"[NaN]", b"-Infinity",
     b'{"a": 1e999}'],
)  # fmt: skip
def test_json_that_is_none_is_one_sentence(app: App, body: bytes) -> None:
    status, text = ask(app, "POST", "/gradio_api/run/status", body, Content_Type="application/json")
    assert status == 400 and "no JSON that can be read" in text


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("call/nothing", {"data": []}, 404, "The app has no action called 'nothing'; "),
        ("run/nothing", {"data": []}, 404, "The app has no action called 'nothing'; "),
        ("call/v2/nothing", {}, 404, "The app has no action called 'nothing'; "),
        ("run/predict", {"data": [], "fn_index": 9999}, 404, "The app has no function 9999;"),
        ("api/predict", {"data": [], "fn_index": "-1"}, 404, "The app has no function -1;"),
        ("queue/join", {"data": [], "fn_index": 9999, "session_hash": "s"}, 404, "The app has no function 9999;"),
        ("call/hold", {"data": []}, 422, "hold takes 1 argument, not 0; null leaves one out."),
        ("call/status/", {"data": ["a"]}, 422, "status takes 3 arguments, not 1; null leaves one out."),
        ("call/v2/hold", {"hald": True}, 422, "The arguments do not fit ("),
        ("component_server", {"component_id": -1, "fn_name": "status"}, 404, "The page has no part -1; load it again."),
        ("component_server/", {"component_id": "999999"}, 404, "The page has no part 999999; load it again."),
    ],
)  # fmt: skip
def test_a_call_that_names_nothing_or_leaves_arguments_out(
    app: App, path: str, body: Any, status: int, sentence: str
) -> None:
    found, text = ask(app, "POST", f"/gradio_api/{path}", body, **JSON)
    assert (found, json.loads(text)["error"][: len(sentence)]) == (status, sentence)


ODD = (None, [], {}, "x", 1, -1, 1e308, True, "\0", "\u00e9" * 10, [1], {"a": 1})


@pytest.fixture
def quiet(app: App) -> Iterator[None]:
    """No program error reaches the console meanwhile."""
    before = (app.folder / "app.log").stat().st_size
    yield
    text = (app.folder / "app.log").read_bytes()[before:].decode(errors="replace")
    assert "Traceback" not in text, text


CALLED = ["component_server", "queue/join", "call/status", "run/status", "api/gallery", "cancel", "reset"]


@pytest.mark.parametrize("path", CALLED)
def test_odd_values_in_a_call_are_no_program_error(app: App, quiet: None, path: str) -> None:
    call = {**panel_call(app, "status"), "fn_index": 0, "data": [], "event_id": "e", "trigger_id": 1}
    for key in call:
        bodies = [{**call, key: value} for value in ODD] + [{k: v for k, v in call.items() if k != key}]
        for body in [*bodies, *ODD]:
            status, text = ask(app, "POST", f"/gradio_api/{path}", body, **JSON)
            assert status < 500, (body, status, text)


PLACES = [("queue/join", None), ("run/predict", 422)]


@pytest.mark.parametrize(("path", "status"), PLACES)
def test_what_a_handler_of_the_page_refuses_is_one_sentence(
    app: App, quiet: None, path: str, status: int | None
) -> None:
    """The server's answer is that of a request that cannot be used, not of a server that failed."""
    page = config(app.url)
    for name in ("example_card", "use_settings", "quality", "generate_from_form", "save", "follow"):
        index, fn = next((i, d) for i, d in enumerate(page["dependencies"]) if name in (d["api_name"], d.get("name")))
        for odd in ([["x"]], [{"a": [1]}], [3]):
            session = f"{random.getrandbits(64):x}"
            body = {"data": odd * len(fn["inputs"]), "fn_index": fn.get("id", index), "session_hash": session}
            found, text = ask(app, "POST", f"/gradio_api/{path}", body, **JSON)
            if status is None:
                assert found == 200
                _, text = ask(app, "GET", f"/gradio_api/queue/data?session_hash={session}")
                text = next(line for line in text.splitlines() if "process_completed" in line).partition(":")[2]
                answer = json.loads(text)["output"]
            else:
                answer = json.loads(text)
                assert found == status, text
            assert re.search(r"^[^\n]{10,600}\.$", answer["error"]), (name, odd, answer)


STREAMS = ["call/gallery/no-job", "call/nothing/%00", "queue/data?session_hash=zz", "queue/data?session_hash="]


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_of_what_is_not_there_ends_as_it_should(app: App, quiet: None, path: str) -> None:
    status, text = ask(app, "GET", f"/gradio_api/{path}")  # read to its end: cut off, it would raise
    assert status == 200 and "error" in text


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_no_path_makes_the_program_stumble(app: App, quiet: None, method: str) -> None:
    found = ["info", "app_id", "token", "user", "theme.css", "openapi.json", "login_check", "queue/status"]
    found += ["heartbeat/", "upload", "upload_progress", "cancel", "reset", "call", "run"]
    found += ["custom_component/1/client/component/x"]
    inside = [f"/gradio_api/{path}{query}" for path in found for query in ("", "?session_hash=%00", "?upload_id=zz")]
    outside = ["/", "/config", "/static/../x", "/assets/x", "/%ff", "/?view=zz", "/?deep_link=../x", "//"]
    for path in inside + outside:
        status, text = ask(app, method, path, **(JSON if method == "POST" else {}))
        assert status < 500, (path, status, text)


RANGES = {
    "bytes=0-0": (206, 1), "bytes=-1": (206, 1), "bytes=5-": (206, 995), "bytes=-5000": (206, 1000),
    "bytes=0-99999999999": (206, 1000), "bytes=2000-": (416, None), "bytes=5-2": (200, 1000),
    "bytes=0-0,2-3": (200, 1000), "bytes=0-,0-,0-": (200, 1000), "bytes=1-2-3": (200, 1000),
    "bytes=--1": (200, 1000), "bytes=a-b": (200, 1000), "bytes=": (200, 1000), "items=0-1": (200, 1000),
    "bytes=0-99999999999999999999": (200, 1000), "bytes=+1-2": (200, 1000), "bytes=-": (200, 1000),
}  # fmt: skip


@pytest.mark.parametrize("asked", RANGES)
def test_ranges_of_a_file(app: App, quiet: None, asked: str) -> None:
    path = app.projects / "ranged.bin"
    path.write_bytes(bytes(1000))
    status, length = RANGES[asked]
    for method in ("GET", "HEAD"):
        found, text = ask(app, method, f"/gradio_api/file={path}", Range=asked)
        assert found == status and (method == "HEAD" or length is None or len(text) == length)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "nothing"])
def test_what_is_no_file_is_not_served(app: App, quiet: None, kind: str) -> None:
    path = app.projects / f"no-file-{kind}"
    if not path.is_symlink() and not path.exists():
        {"pipe": os.mkfifo, "folder": Path.mkdir, "loop": lambda p: p.symlink_to(p), "nothing": str}[kind](path)
    status, text = ask(app, "GET", f"/gradio_api/file={path}")
    assert (status, json.loads(text)["error"]) == (404, "There is no such file; it may have been deleted.")


@pytest.mark.parametrize("name", ["a" * 256, "%C3%BC" * 128, "a/" * 3000], ids=len)
@pytest.mark.parametrize("where", ["/gradio_api/file={projects}/", "/static/", "/assets/", "/"])
def test_names_longer_than_a_disk_has_are_not_looked_for(app: App, quiet: None, where: str, name: str) -> None:
    assert ask(app, "GET", where.format(projects=app.projects) + name)[0] == 404


@pytest.mark.parametrize("part", ["", "Range: bytes=5-\r\n"], ids=["whole", "from the sixth byte on"])
def test_a_file_that_is_cut_while_it_is_sent(app: App, quiet: None, part: str) -> None:
    path = app.projects / "cut.bin"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    with socket.create_connection(("127.0.0.1", app.port), timeout=WAIT / 1000) as connection:
        connection.sendall(f"GET /gradio_api/file={path} HTTP/1.1\r\nHost: localhost\r\n{part}\r\n".encode())
        received = len(connection.recv(1000))
        os.truncate(path, 10)
        while more := connection.recv(1 << 20):  # to the end of the connection
            received += len(more)
    assert 0 < received < 200_000_000


def test_uploads_that_break_off(app: App, quiet: None) -> None:
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc'
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", app.port), timeout=WAIT / 1000) as connection:
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{part}".encode())
    assert ask(app, "GET", "/config")[0] == 200


def test_a_request_of_which_nothing_more_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SILENT_SECONDS", 0.1)
    sent: list[Any] = []

    async def silent() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            assert message
        raise ClientDisconnect

    kinds = {"/gradio_api/run/status": "application/json", "/gradio_api/upload": "multipart/form-data; boundary=x"}
    for path, kind in kinds.items():
        headers = [(b"host", b"localhost"), (b"content-type", kind.encode()), (b"content-length", b"99")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        around = ServerErrorMiddleware(reading)  # as the app has it
        asyncio.run(asyncio.wait_for(guard.Guard(around, Hosts("127.0.0.1"), ())(scope, silent, send), 10))
    starts = [message["status"] for message in sent if message["type"] == "http.response.start"]
    assert starts == [400, 408] and all(b"broke off" in one["body"] for one in sent if "body" in one)


def test_arguments_by_name_are_taken(app: App) -> None:
    assert ask(app, "POST", "/gradio_api/call/v2/hold", {"held": False}, **JSON)[0] == 200


@pytest.mark.parametrize("boundary", ["x", "x" * 5000], ids=len)
def test_an_upload_without_a_file_is_one_sentence(app: App, quiet: None, boundary: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nhello\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary={boundary}"
    status, text = ask(app, "POST", "/gradio_api/upload", body, Content_Type=kind)
    assert (status, json.loads(text)["error"]) == (400, "An upload is made of files, each with its name.")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/deep_link?session_hash=s", "/gradio_api/stream/s/1/2/playlist.m3u8", "/gradio_api/proxy=http://x/",
        "/gradio_api/run-history/buckets", "/gradio_api/profiling/traces", "/gradio_api/vibe-code", "/monitoring",
        "/monitoring/summary", "/login/huggingface", "/logout", "/gradio_api/dev/reload", "/gradio_api/mcp/",
    ],
)  # fmt: skip
def test_what_the_app_does_not_use_of_gradio_is_closed(app: App, path: str) -> None:
    """Some of it fetches, and some keeps on disk whatever is asked for, without end."""
    status, text = ask(app, "GET", path)
    assert (status, json.loads(text)["error"]) == (404, "There is nothing here.")


def test_a_request_of_30_mb_is_not_read(app: App) -> None:
    began = time.monotonic()
    body = json.dumps({"data": ["a" * 30_000_000]}).encode()
    try:
        status, text = ask(app, "POST", "/gradio_api/run/generate", body, Content_Type="application/json")
    except (BrokenPipeError, ConnectionResetError):  # it was told before it had sent all
        status, text = 413, "4 MB"
    assert status == 413 and "4 MB" in text
    assert program(app.url).predict(api_name="/queue")["jobs"] is not None
    assert time.monotonic() - began < 60


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(app: App) -> Iterator[Callable[[str], str]]:
    """Serves a page of another site: takes its script, answers its address (host and port differ from the app's)."""
    pages: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def publish(script: str) -> str:
        path = f"/{len(pages)}.html"
        pages[path] = f"<body><script>{script}</script>".encode()
        return f"http://127.0.0.1:{server.server_port}{path}"

    yield publish
    server.shutdown()


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Page]:
    """A page that shows nothing yet."""
    context = patient(browser.new_context())
    yield context.new_page()
    context.close()


STEER = """
window.results = (async () => {
  const app = APP, call = CALL, out = [];
  const tries = [
    ['component_server', JSON.stringify(call), 'text/plain'],
    ['component_server', new Blob([JSON.stringify(call)]), null],
    ['component_server', JSON.stringify(call), 'application/json'],
    ['run/hold', JSON.stringify({data: [true]}), 'application/json'],
    ['upload', (() => { const f = new FormData(); f.append('files', new Blob(['x']), 'x.png'); return f; })(), null],
  ];
  for (const mode of ['no-cors', 'cors']) for (const [path, body, type] of tries) {
    try {
      const headers = type ? {'Content-Type': type} : {};
      const answer = await fetch(app + 'gradio_api/' + path, {method: 'POST', mode, body, headers});
      out.push([mode, path, answer.type, answer.status]);
    } catch (error) { out.push([mode, path, 'blocked', 0]); }
  }
  const image = await new Promise((done) => {
    const i = new Image();
    i.onload = () => done('seen'); i.onerror = () => done('blocked'); i.src = app + 'static/img/logo.svg';
  });
  out.push(['image', '', image, 0]);
  return out;
})();
"""


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_page_of_another_site_steers_nothing(
    app: App, visitor: Page, elsewhere: Callable[[str], str], name: str
) -> None:
    call = {**panel_call(app, "hold"), "data": {"held": True}}
    before = sorted((app.projects / ".arriving").rglob("*"))
    script = STEER.replace("APP", json.dumps(f"http://{name}:{app.port}/")).replace("CALL", json.dumps(call))
    visitor.goto(elsewhere(script))
    results = visitor.evaluate("results")
    assert len(results) == 11 and all(kind in ("opaque", "blocked") for _, _, kind, _ in results), results
    assert held(app) is False
    assert sorted((app.projects / ".arriving").rglob("*")) == before


def test_a_link_from_another_site_opens_the_app(app: App, visitor: Page, elsewhere: Callable[[str], str]) -> None:
    visitor.goto(elsewhere(f"document.write('<a href=\"{app.url}\">the app</a>')"))
    visitor.click("a")
    visitor.wait_for_selector("#mg-generate")


def test_the_app_is_not_framed(app: App, visitor: Page, elsewhere: Callable[[str], str]) -> None:
    visitor.goto(elsewhere(f"document.write('<iframe src=\"{app.url}\"></iframe>')"))
    inside = visitor.frames[1]
    inside.wait_for_load_state()
    assert inside.url == "chrome-error://chromewebdata/"


def test_a_name_made_to_point_here_reads_nothing(app: App, playwright_: Playwright) -> None:
    """DNS rebinding: the attacker's name resolves to this computer, so the browser takes the app for the attacker's."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    mapped = [*ARGUMENTS, "--host-resolver-rules=MAP evil.example 127.0.0.1"]
    browser = playwright_.chromium.launch(executable_path=path, args=mapped)
    page = patient(browser.new_context()).new_page()
    answer = page.goto(f"http://evil.example:{app.port}/config")
    assert answer is not None and answer.status == 403
    call = json.dumps({**panel_call(app, "gallery"), "data": {}})
    found = page.evaluate(
        """async ([call]) => { const answers = [];
          for (const [path, options] of [['/config', {}], ['/gradio_api/component_server', {method: 'POST', body: call,
              headers: {'Content-Type': 'application/json'}}], ['/gradio_api/info', {}]]) {
            const answer = await fetch(path, options); answers.push([answer.status, await answer.text()]); }
          return answers; }""",
        [call],
    )
    browser.close()
    assert [status for status, _ in found] == [403] * 3
    assert not any("videos" in text or "components" in text for _, text in found)


@pytest.fixture
def playwright_(browser: Browser) -> Playwright:
    """Playwright, which runs already for the shared browser."""
    import gc

    return next(one for one in gc.get_objects() if isinstance(one, Playwright))


# --- files -----------------------------------------------------------------------------------------------------------


def source(path: object) -> dict[str, Any]:
    return {"kind": "image", "path": str(path), "name": "a.png", "width": 32, "height": 32, "url": "", "info": ""}


def generate_from_form(app: App, at: str, value: object) -> str:
    """Press Generate as a page would, with one field's value forged; what the queue answers."""
    page = config(app.url)
    ids = {c["id"]: c["props"] for c in page["components"]}
    index, fn = next((i, d) for i, d in enumerate(page["dependencies"]) if d["api_name"] == "generate_from_form")
    data = [ids[i].get("value") for i in fn["inputs"]]
    names = [ids[i].get("elem_id") for i in fn["inputs"]]
    data[names.index("mg-prompt")] = "a ball"
    data[names.index("mg-mode")] = "Start with image" if at == "mg-source" else "Text to video"
    data[names.index(at)] = value
    session = f"{random.getrandbits(64):x}"
    body = {"data": data, "fn_index": fn.get("id", index), "session_hash": session}
    status, text = ask(app, "POST", "/gradio_api/queue/join", body, Content_Type="application/json")
    if status != 200:
        return text
    stream = urllib.request.urlopen(f"{app.url}gradio_api/queue/data?session_hash={session}", timeout=WAIT / 1000)
    for line in stream:
        if b"process_completed" in line:
            return line.decode()
    return ""


@pytest.fixture
def secret(tmp_path: Path, app: App) -> Iterator[Path]:
    """A picture that nobody uploaded, and a link to it from inside the projects folder."""
    path = tmp_path / "secret.png"
    Image.new("RGB", (48, 48), "red").save(path)
    link = app.projects / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    yield path
    link.unlink()


def test_a_path_from_elsewhere_is_refused_and_says_not_whether_it_exists(app: App, secret: Path) -> None:
    jobs = len(program(app.url).predict(api_name="/queue")["jobs"])
    traversal = f"{app.projects}/../../../../../../../../{secret}"
    for forged in (secret, app.projects / "link.png", traversal, "/etc/passwd", f"{secret}\0.png", 7, None):
        missing = str(forged).replace("secret", "nothing").replace("link", "nothing").replace("passwd", "nothing")
        there, gone = (generate_from_form(app, "mg-source", source(one)) for one in (forged, missing))
        assert "not uploaded" in there, forged
        if "link" not in str(forged):
            assert "not uploaded" in gone
    assert len(program(app.url).predict(api_name="/queue")["jobs"]) == jobs


def test_the_api_takes_no_path_from_elsewhere(app: App, secret: Path) -> None:
    client = program(app.url)
    answers = set()
    for forged in (secret, secret.with_name("nothing.png"), app.projects / "link.png"):
        with pytest.raises(Exception, match="no file of the projects folder") as caught:
            client.predict("a ball", 1, image=str(forged), api_name="/generate")
        answers.add(re.sub(r"\S*/\S*", "PATH", str(caught.value)))
    assert len(answers) == 1


@pytest.mark.parametrize(
    "path",
    [
        "{secret}",
        "{projects}/link.png",
        "{projects}/../{up}{secret}",
        "/etc/passwd",
        "/etc/nothing",
        "{projects}/.queue/queue.sqlite",
        "http://127.0.0.1:1/x",
        "https://example.com/",
        "HTTP://example.com/",
        "//host/share/x",
        "\\\\host\\share",
    ],
)
def test_files_elsewhere_are_not_served(app: App, secret: Path, path: str) -> None:
    asked = path.format(secret=secret, projects=app.projects, up="../" * 12)
    for door in ("file=", "file/"):
        assert ask(app, "GET", f"/gradio_api/{door}{urllib.request.quote(asked)}")[0] == 403
    assert ask(app, "GET", f"/gradio_api/proxy={urllib.request.quote(asked)}")[0] == 404


@pytest.mark.parametrize(
    "where",
    [
        "http://127.0.0.1:1/a.png",
        "https://example.com/a.png",
        "HtTp://example.com/a.png",
        " http://e.example/",
        "//host/a.png",
        "\\\\host\\share\\a.png",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
def test_no_file_is_fetched_for_anyone(app: App, where: str) -> None:
    data = {"path": where, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    for path, body in (
        ("run/generate", {"data": ["a ball", 1, "", data]}),
        ("call/generate", {"data": ["a ball", 1, "", [{"deep": data}]]}),
        ("queue/join", {"data": [data], "fn_index": 0, "session_hash": "x"}),
    ):
        status, text = ask(app, "POST", f"/gradio_api/{path}", body, Content_Type="application/json")
        assert status == 403 and "uploaded" in text


UPLOADED = {"path": "{arriving}/some/a.png", "meta": {"_type": "gradio.FileData"}}
NOT_UPLOADS = {
    "a file of the folder": ({"path": "{projects}/label.txt"}, 403),
    "a folder": ({"path": "{arriving}/some"}, 403),
    "the folder of uploads": ({"path": "{arriving}"}, 403),
    "gone": ({"path": "{arriving}/some/b.png"}, 403),
    "a name that no disk has": ({"path": "{arriving}/" + "y" * 300}, 403),
    "empty": ({"path": ""}, 403),
    "a link": ({"path": "{arriving}/some/link.png"}, 403),
    "meta is text": ({"meta": "x"}, 422),
    "meta is null": ({"meta": None}, 422),
    "size is text": ({"size": "big"}, 422),
    "its name is a number": ({"orig_name": 5}, 422),
}


@pytest.mark.parametrize("forged", NOT_UPLOADS)
@pytest.mark.parametrize("action", ["status", "details", "generate"])
def test_what_is_sent_as_an_upload_is_one(app: App, quiet: None, action: str, forged: str) -> None:
    """Gradio looks for such files before any action of ours does, and its errors are no sentences."""
    arriving = app.projects / ".arriving"
    (arriving / "some").mkdir(exist_ok=True)
    Image.new("RGB", (48, 48), "red").save(arriving / "some" / "a.png")
    (app.projects / "label.txt").write_text("x")
    if not (link := arriving / "some" / "link.png").is_symlink():
        link.symlink_to(app.projects / "label.txt")
    changes, status = NOT_UPLOADS[forged]
    data = {**UPLOADED, **changes}
    data["path"] = str(data["path"]).format(arriving=arriving, projects=app.projects)
    for value in (data, [data], {"deep": [data]}):
        found, text = ask(app, "POST", f"/gradio_api/run/{action}", {"data": [value] * 40}, **JSON)
        assert (found, json.loads(text)["error"][-1]) == (status, "."), text


@pytest.mark.parametrize("model", ["/etc", "/nothing", "../../etc", "{models}/../outputs", "~", "\0", "//host/share"])
def test_a_model_outside_the_models_folder_is_not_looked_at(app: App, model: str) -> None:
    named = model.format(models=app.folder / "models")
    with pytest.raises(Exception, match="There is no model"):
        program(app.url).predict("a ball", 1, model=named, api_name="/generate")
    assert "There is no model" in generate_from_form(app, "mg-model", named)


def test_a_program_on_this_computer_still_works(app: App, tmp_path: Path) -> None:
    Image.new("RGB", (48, 48), "teal").save(tmp_path / "photo.jpg")
    client = program(app.url)
    job = client.predict(
        "a ball", 1, image=handle_file(tmp_path / "photo.jpg"), width=32, height=32, api_name="/generate"
    )["job"]
    client.predict(job, api_name="/stop")


# --- what goes out, and what is kept ---------------------------------------------------------------------------------

WATCHED_APP = """
import socket, sys
out = open(sys.argv[1], "a", buffering=1)
def watch(name):
    real = getattr(socket.socket, name)
    def connecting(self, address, *rest):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
            print(name, address, file=out)
        return real(self, address, *rest)
    setattr(socket.socket, name, connecting)
for name in ("connect", "connect_ex", "sendto"):
    watch(name)
looked_up = socket.getaddrinfo
def lookup(host, *rest, **more):
    if host not in (None, "localhost", b"localhost") and not str(host).startswith(("127.", "::1", "b'127.")):
        print("lookup", host, file=out)
    return looked_up(host, *rest, **more)
socket.getaddrinfo = lookup
from magi_lite.cli import main
print("watching", file=out)
sys.exit(main(["app", *sys.argv[2:]]))
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[App]:
    server = App(tmp_path)
    yield server
    server.stop()


def test_nothing_goes_out_at_start_or_in_use(own: App, visitor: Page, tmp_path: Path) -> None:
    seen = tmp_path / "connections.txt"
    options = ["--port", str(own.port), "--projects", str(own.projects), "--models", str(own.folder / "models")]
    log = (own.folder / "app.log").open("ab")
    own.process = subprocess.Popen(
        [sys.executable, "-c", WATCHED_APP, str(seen), *options], cwd=ROOT, stdout=log, stderr=log,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    own.wait()
    visitor.goto(own.url)
    visitor.wait_for_function("window.magi && magi.state")
    client = program(own.url)
    job = client.predict("a red ball", 1, width=32, height=32, quality="draft", api_name="/generate")["job"]
    while client.predict(job, api_name="/status")["shown"]["state"] in ("waiting", "running"):
        time.sleep(0.3)
    for where in ("http://example.com/a.png", "https://192.0.2.1/"):
        ask(own, "GET", f"/gradio_api/file={where}")
        data = {"path": where, "meta": {"_type": "gradio.FileData"}}
        ask(own, "POST", "/gradio_api/run/generate", {"data": ["x", 1, "", data]}, Content_Type="application/json")
    assert client.predict(job, api_name="/status")["shown"]["state"] == "finished"
    assert seen.read_text().splitlines() == ["watching"]


def test_what_pages_sent_is_gone_at_the_next_start(own: App) -> None:
    """Whole or cut off, and in a folder of the app's own: what other programs keep elsewhere is not touched."""
    arriving = own.projects / ".arriving"
    old = arriving / "0123abcd" / "old.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"from the run before")
    own.start()
    assert not old.exists() and not old.parent.exists()
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 900000\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    begun = head.format(port=own.port) + "Content-Type: multipart/form-data; boundary=x\r\n\r\n" + part
    with socket.create_connection(("127.0.0.1", own.port)) as connection:
        connection.sendall(begun.encode() + bytes(200_000))
        until = time.monotonic() + 20
        while not list(arriving.iterdir()) and time.monotonic() < until:
            time.sleep(0.05)
    assert list(arriving.iterdir()), "it arrives in the app's own folder"
    own.stop()
    own.start()
    assert not list(arriving.iterdir())


def test_nothing_is_deleted_or_served_through_a_link(own: App, tmp_path: Path) -> None:
    """A folder of runs from somebody else may hold links to anything of the user's."""
    dear = tmp_path / "dear"
    dear.mkdir()
    (dear / "letter.png").write_bytes(b"dear to someone")
    own.projects.mkdir(parents=True)
    for name in (".arriving", ".uploads"):
        (own.projects / name).symlink_to(dear)
    own.start()
    assert (dear / "letter.png").read_bytes() == b"dear to someone"
    for path in (dear / "letter.png", own.projects / ".uploads" / "letter.png"):
        assert ask(own, "GET", f"/gradio_api/file={path}")[0] == 403
    assert (own.projects / ".arriving").is_dir() and not (own.projects / ".arriving").is_symlink()
    with pytest.raises(Exception, match="not uploaded"):
        Client(own.url, verbose=False).predict("x", 1, image={"path": str(dear / "letter.png")}, api_name="/generate")


def test_uploads_that_nobody_came_back_to_are_forgotten(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("a/old.png", 90_000), ("a/new.png", 10), ("b/old.png", 90_000), ("tmpcut", 90_000)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (now - age, now - age))
    os.utime(tmp_path / "b", (now - 90_000, now - 90_000))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    uploads.forget(tmp_path, uploads.FORGOTTEN_SECONDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new.png"]
    uploads.forget(tmp_path)
    assert not list(tmp_path.iterdir()), "and all of them at the next start"
    uploads.forget(tmp_path / "was never there")


def test_kept_files_go_when_no_job_and_no_form_of_late_uses_them(tmp_path: Path) -> None:
    now, folder = time.time(), tmp_path / ".uploads"
    source = tmp_path / "a.png"
    source.write_bytes(b"a picture")
    again = uploads.keep(source, "a.png", folder)
    for name, age in ((again.name, 40), ("old.png", 40), ("of a job.png", 40), ("young.png", 3)):
        (folder / name).touch()
        os.utime(folder / name, (now - age * 86400,) * 2)
    assert uploads.keep(source, "a.png", folder) == again  # the same picture, dropped once more
    uploads.clean(folder, {folder / "of a job.png"})
    assert {path.name for path in folder.iterdir()} == {again.name, "of a job.png", "young.png"}


def test_sessions_are_bounded(app: App) -> None:
    assert app.process
    process = psutil.Process(app.process.pid)
    call = panel_call(app, "status")

    def visit(count: int) -> None:
        for _ in range(count):
            body = {**call, "session_hash": f"{random.getrandbits(64):x}", "data": {}}
            assert ask(app, "POST", "/gradio_api/component_server", body, Content_Type="application/json")[0] == 200

    visit(100)  # more than are kept
    before = process.memory_info().rss
    visit(250)
    assert process.memory_info().rss - before < 40e6
