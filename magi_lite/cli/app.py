"""Serve the desktop app in the browser."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from magi_lite.resources import home_folder

if TYPE_CHECKING:
    from gradio import Blocks

    from magi_lite.workers.cluster import Cluster
    from magi_lite.workers.fleet import Fleet

SESSIONS = 64
"""Pages whose state Gradio keeps, about a quarter of a megabyte each; the one unused for longest is forgotten."""

TIDY_SECONDS = 600.0
"""From one look for uploads that nobody came back to, to the next."""
LAST_ANSWERS_SECONDS = 1.0
"""For answers that are on their way when the app ends. Every open page holds a stream, which never ends by itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The app's options."""
    home = home_folder()
    parser.add_argument("--server", default="127.0.0.1", help="address to listen on (default: this computer only)")
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    parser.add_argument("--inbrowser", action="store_true", help="open the browser")
    parser.add_argument("--preset", default="auto", help="machine profile of presets/ (default: the one that fits)")
    parser.add_argument(
        "--cards", metavar="all|0,1", help="CUDA cards to use, a worker each (default: the first; jobs are shared out)"
    )
    parser.add_argument(
        "--ray", metavar="auto|ADDRESS", help="make videos on a Ray cluster (needs: pip install magi-lite[ray])"
    )
    parser.add_argument("--projects", type=Path, default=home / "outputs", help="where runs are kept")
    parser.add_argument(
        "--models", type=Path, help="where weights are (default: the folder chosen in the System tab, else models)"
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="offer the app's actions as tools of the Model Context Protocol, to this computer only "
        "(needs: pip install magi-lite[mcp])",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve the app until Ctrl-C."""
    check_address(arguments.server, arguments.port)
    # Gradio reads these when it is imported: no analytics, no look-ups, nothing leaves this computer.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    print(f"MAGI Lite is starting; its page will be http://{_shown(arguments)}/ in a few seconds.", flush=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return serve(arguments)


def check_address(server: str, port: int) -> None:
    """Refuse an address that cannot be listened on, before anything is started.

    Raises:
        InputError: it is none of this computer's, or the port is taken; one sentence.
    """
    from magi_lite.errors import InputError
    from magi_lite.sentences import shown

    if not 1 <= port < 1 << 16:
        raise InputError(f"There is no port {shown(port)}; choose one from 1 to 65535 with --port.")
    try:
        found = socket.getaddrinfo(_bare(server) or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            if os.name == "posix":  # where it lets a port be taken that was just left, and no other's
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except (OSError, ValueError) as error:  # a name that is none raises a UnicodeError
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            reason = "is in use" if getattr(error, "errno", None) == errno.EADDRINUSE else "may not be used"
            raise InputError(f"Port {port} {reason}; choose another one with --port.") from None
        raise InputError(
            f"--server {shown(server)} is no address of this computer; use 127.0.0.1 for this computer alone, or "
            "0.0.0.0 for every network."
        ) from None


def _bare(server: str) -> str:
    """An address to listen on, without the brackets in which IPv6 stands in links."""
    return server[1:-1] if server.startswith("[") and server.endswith("]") else server


def chosen_cards(asked: str | None) -> list[int]:
    """The numbers of the cards that `--cards` names; empty: one worker for whatever there is.

    Raises:
        InputError: a card is not there, or it is no list of numbers.
    """
    from magi_lite.errors import InputError
    from magi_lite.machine import devices

    if asked is None:
        return []
    present = [card.name for card in devices.cards()]
    if asked.strip().lower() == "all":
        return list(range(len(present))) if len(present) > 1 else []
    try:
        numbers = sorted({int(part) for part in asked.split(",")})
    except ValueError:
        raise InputError(f"--cards takes all, or numbers such as 0,1, not {asked!r}.") from None
    for number in numbers:
        if not 0 <= number < len(present):
            known = ", ".join(f"{place} ({name})" for place, name in enumerate(present)) or "none"
            raise InputError(f"There is no card {number}; this computer has {known}.")
    return numbers


def workers(arguments: argparse.Namespace, projects: Path) -> Fleet | Cluster:
    """What makes the videos of a queue, as `--ray` and `--cards` say.

    Args:
        projects: folder of the runs.

    Raises:
        InputError: as `chosen_cards` and `Cluster`.
    """
    from magi_lite.machine import devices
    from magi_lite.workers.cluster import Cluster
    from magi_lite.workers.fleet import Fleet
    from magi_lite.workers.worker import Settings

    if arguments.ray:
        return Cluster(projects, arguments.ray)
    return Fleet(Settings(projects, cuda=devices.detect().kind == "cuda"), chosen_cards(arguments.cards))


def _shown(arguments: argparse.Namespace) -> str:
    """Host and port as this computer's browser takes them."""
    host = "127.0.0.1" if arguments.server in ("0.0.0.0", "::", "") else arguments.server
    return f"[{host}]:{arguments.port}" if ":" in host.strip("[]") else f"{host}:{arguments.port}"


def _end_when_asked() -> None:
    """Let a request to terminate, as of a service or a container, end the app as Ctrl-C does: what runs is saved."""

    def handle(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)


def _wait(demo: Blocks, now_and_then: Callable[[], None]) -> None:
    """Until Ctrl-C, which also ends the public link: `block_thread` without its words."""
    from gradio.tunneling import CURRENT_TUNNELS

    done = time.monotonic()
    try:
        while demo.is_running:
            time.sleep(0.1)
            if time.monotonic() - done > TIDY_SECONDS:
                now_and_then()
                done = time.monotonic()
    except KeyboardInterrupt:
        print("MAGI Lite is ending; the video in the making is saved.", flush=True)
        demo.server.should_exit = True
        demo.server.thread.join(LAST_ANSWERS_SECONDS)
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()


def _check_mcp(local: bool) -> None:
    """Refuse to offer tools to other computers, or without the library.

    Raises:
        InputError: one sentence.
    """
    from magi_lite.errors import InputError

    if not local:
        raise InputError(
            "--mcp offers tools to this computer only; leave out --share and --server."
        )
    if importlib.util.find_spec("mcp") is None:
        raise InputError("--mcp needs a library that is not installed: pip install magi-lite[mcp]")


def serve(arguments: argparse.Namespace) -> int:
    """Build everything and listen."""
    from magi_lite.errors import InputError
    from magi_lite.jobs import JobQueue
    from magi_lite.jobs.queue import alone_in
    from magi_lite.jobs.recover import unfinished
    from magi_lite.ui import assets, guard, page, uploads
    from magi_lite.ui.actions import Actions
    from magi_lite.ui.library import Library
    from magi_lite.ui.machine import Machine
    from magi_lite.ui.report import Console
    from magi_lite.ui.saved import Saved

    console = Console()
    console.listen()
    hosts = guard.Hosts(arguments.server)
    local = hosts.loopback and not arguments.share
    if arguments.mcp:
        _check_mcp(local)
    projects = arguments.projects.resolve()
    alone = alone_in(projects / ".queue")
    arriving = uploads.arriving_folder(projects)
    os.environ["GRADIO_TEMP_DIR"] = str(arriving)  # a folder of our own, which we may empty
    fleet = workers(arguments, projects)
    queue = JobQueue(projects / ".queue", fleet.runners, lambda: unfinished(projects))
    chosen = Path(queue.setting("models_folder", ""))
    models = arguments.models or (chosen if chosen.is_absolute() and chosen.is_dir() else home_folder() / "models")
    machine = Machine(models.resolve(), arguments.preset, fleet)
    library = Library(projects)
    actions = Actions(queue, library, machine, console, local)
    requests = [job.request for job in queue.jobs()]
    used = {path for one in requests for path in (one.image, one.video, *one.timeline.pictures) if path}
    uploads.clean(actions.given.folder, used)
    demo = page.build(actions, library, machine, Saved(queue)).queue(default_concurrency_limit=8)
    queue.start()
    _end_when_asked()
    try:
        demo.launch(
            server_name=f"[{_bare(arguments.server)}]" if ":" in arguments.server else arguments.server,
            server_port=arguments.port,
            share=arguments.share,
            inbrowser=arguments.inbrowser,
            allowed_paths=[str(projects)],
            blocked_paths=[str(projects / ".queue")],
            app_kwargs={
                "lifespan": guard.around(hosts, (projects,), mcp=arguments.mcp),
                "routes": assets.routes(),
            },
            state_session_capacity=SESSIONS,
            max_file_size=uploads.LIMIT_BYTES,
            show_error=True,
            footer_links=[],
            ssr_mode=False,
            run_history=False,
            mcp_server=arguments.mcp,
            prevent_thread_lock=True,
            quiet=True,  # what there is to say, the lines below say
            _frontend=False,  # else a busy machine is taken for one without localhost
            **page.look(),
        )
        print(f"The page is http://{_shown(arguments)}/; Ctrl-C ends the app.", flush=True)
        if demo.share_url:
            hosts.public.add(urlsplit(demo.share_url).hostname or "")
        _wait(demo, lambda: uploads.forget(arriving, uploads.FORGOTTEN_SECONDS))
    except OSError:  # what was free when it was looked at is taken by now
        raise InputError(f"Port {arguments.port} cannot be used; choose another one with --port.") from None
    finally:
        patience = 10.0
        try:
            queue.close()
        except KeyboardInterrupt:  # a second Ctrl-C: workers end their step by themselves
            patience = 0.0
            raise
        finally:
            fleet.close(patience)
            alone.release()
    return 0
