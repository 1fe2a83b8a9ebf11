"""The app's actions as tools of the Model Context Protocol, where the library for it is installed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from magi_lite.ui.page import API
from tests.ui.conftest import App

HELLO = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def ask(app: App, method: str, parameters: dict[str, Any] | None = None, **headers: str) -> Any:
    """The result of a request, or the status with which it is refused."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters or {}}
    headers |= {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    asked = urllib.request.Request(f"{app.url}gradio_api/mcp/", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(asked, timeout=120) as answer:
            lines = answer.read().decode().splitlines()
    except urllib.error.HTTPError as error:
        return error.code
    return json.loads(next(line for line in lines if line.startswith("data:"))[5:])["result"]


def test_every_action_is_a_tool_for_this_computers_programs_alone(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="needs: pip install magi-lite[mcp]")
    app = App(tmp_path)
    app.extra = ["--mcp"]
    app.start()
    try:
        assert ask(app, "initialize", HELLO)["serverInfo"]["name"] == "MAGI Lite"
        tools = {tool["name"]: tool for tool in ask(app, "tools/list")["tools"]}
        assert set(tools) == set(API) and all(tool["description"] for tool in tools.values())
        called = ask(app, "tools/call", {"name": "queue", "arguments": {}})
        assert "'jobs': []" in called["content"][0]["text"] and not called["isError"]
        assert ask(app, "tools/list", Origin="http://elsewhere.example") == 403
        assert ask(app, "tools/list", Host="elsewhere.example") == 403
    finally:
        app.stop()


def test_without_being_asked_for_there_are_no_tools(app: App) -> None:
    assert ask(app, "tools/list") == 404
