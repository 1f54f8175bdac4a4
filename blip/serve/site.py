"""The server: gradio's page behind the guard, in a temporary folder that goes with it, until Ctrl-C."""

import inspect
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from blip.errors import BlipError, InputError
from blip.serve.guard import Guard
from blip.serve.limits import Limits
from blip.serve.served import ServedModel
from blip.serve.uploads import Uploads

NEEDS_GRADIO = "the page needs gradio 6.20 or later: pip install 'blip[serve]', or pip install -e '.[serve]' in a clone"
OLDEST = (6, 20)  # of gradio
SWEEP = 20  # seconds between two looks for what nobody uses any more
# gradio reads these; what a user has set for other programs does not count here
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_VIBE_MODE": "",
    "GRADIO_ROOT_PATH": "",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OTEL_SDK_DISABLED": "true",
}


class ServeError(BlipError):
    """The server cannot be started; the message gives the reason."""


@dataclass(frozen=True)
class Site:
    """Where a server answers, and for whom.

    Args:
        host: the address that it listens on.
        port: 0 takes a free one.
        title: of the page.
        users: (name, password) of those who may use it; everybody where there are none.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    title: str = "blip"
    users: Sequence[tuple[str, str]] = field(default=(), repr=False)

    @property
    def local(self) -> bool:
        """Whether it answers on this computer alone."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")


def needs_gradio() -> None:
    """ServeError where the extra is not installed, or gradio is older than it asks for."""
    try:
        major, minor = map(int, version("gradio").split(".")[:2])
    except PackageNotFoundError:
        raise ServeError(NEEDS_GRADIO) from None
    if (major, minor) < OLDEST:
        raise ServeError(f"gradio {major}.{minor} is too old, and its page loads a foreign script: {NEEDS_GRADIO}")


def check(site: Site) -> None:
    """InputError for a server that others could use without a password."""
    if not site.local and not site.users:
        raise InputError(f"{site.host} can be reached from other computers: give --auth USER:FILE, or leave out --host")


@contextmanager
def listening(site: Site) -> Iterator[socket.socket]:
    """The socket of a server, so that a port in use is known before models are loaded.

    Raises:
        ServeError: the port is in use, or the address is not one of this computer.
    """
    try:
        family, *_, address = socket.getaddrinfo(site.host, site.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            yield bound
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServeError(f"cannot listen on {site.host}, port {site.port}: {reason}; --port takes another") from None


def serve(
    models: dict[str, ServedModel],
    examples: dict[str, Path],
    site: Site,
    *,
    limits: Limits,
    bound: socket.socket,
    ready: Any = None,
) -> None:
    """Answers until SIGINT or SIGTERM.

    Args:
        models: the checkpoints by name, the first one chosen.
        examples: images that every page offers, by the names that it shows.
        bound: the socket of `listening`.
        ready: is called without arguments once the server answers.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that the folder goes, also before the server runs
    folder = Path(tempfile.mkdtemp(prefix="blip-serve-"))
    try:
        os.environ.update(SETTINGS, GRADIO_TEMP_DIR=str(folder))
        uploads = Uploads(folder, limits)
        app = application(models, examples, site, uploads=uploads)
        _sweep_for_ever(uploads)
        _run(app, bound, ready)
    except KeyboardInterrupt:
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def application(models: dict[str, ServedModel], examples: dict[str, Path], site: Site, *, uploads: Uploads) -> Guard:
    """The ASGI application of a server. `SETTINGS` and GRADIO_TEMP_DIR stand in the environment before."""
    import gradio as gr
    from fastapi import FastAPI

    from blip.serve import page
    from blip.serve.handlers import Handlers

    limits = uploads.limits
    blocks = page.build(Handlers(models, examples, uploads, limits), site.title)
    blocks.queue(max_size=limits.queue_size, api_open=False, default_concurrency_limit=len(models))
    blocks.state_session_capacity = limits.sessions
    options: dict[str, Any] = {
        "auth": list(site.users) or None,
        "auth_message": page.WARNING,
        "allowed_paths": [],
        "show_error": False,
        "max_file_size": limits.max_upload_mb << 20,  # of images less, which is checked when they are read
        "ssr_mode": False,
        "enable_monitoring": False,
        "pwa": False,
        "mcp_server": False,
        "footer_links": [],
        "run_history": False,
        "app_kwargs": {"docs_url": None, "redoc_url": None, "openapi_url": None},
        **page.look(),
    }
    known = inspect.signature(gr.mount_gradio_app).parameters  # `run_history` is of later versions
    options = {name: value for name, value in options.items() if name in known}
    app = gr.mount_gradio_app(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks, path="/", **options)
    return Guard(app, uploads.folder, limits, local=site.local, on_disk=uploads.on_disk)


def end_at_once() -> None:
    """Ends the process without waiting: models may be in the middle of a request, and Python takes seconds to clear
    away what the process loses anyhow."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sweep_for_ever(uploads: Uploads) -> None:
    def sweep() -> None:
        while True:
            time.sleep(SWEEP)
            uploads.sweep()

    threading.Thread(target=sweep, name="blip serve: sweep", daemon=True).start()


def _run(app: Guard, bound: socket.socket, ready: Any) -> None:
    """Runs the server; a signal ends it at once, whatever requests are open."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="critical", access_log=False, timeout_keep_alive=20, limit_concurrency=512, server_header=False,
        ws="none", lifespan="on", timeout_graceful_shutdown=0,
    )  # fmt: skip

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and ready is not None:
                ready()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.should_exit = self.force_exit = True

    Server(config).run(sockets=[bound])
