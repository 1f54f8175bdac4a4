"""A server of `blip serve` in a process of its own, and a page of it that is used without a browser."""

import json
import os
import re
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from helpers.running import Program

API = "/gradio_api"


class Server:
    """`blip serve ARGUMENTS`, on a free port; ends with the block."""

    def __init__(self, *arguments: str | Path, folder: Path, env: dict | None = None) -> None:
        """`folder` takes what the server writes into the system's temporary folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        words = [*arguments, "--port", "0", "--num_threads", "1"]
        self.program = Program("blip", "serve", *words, env={"TMPDIR": str(folder), **(env or {})})
        self.address = self._address()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        if self.program.poll() is None:
            self.program.kill()

    def _address(self, seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.program.poll() is None:
            if found := re.search(r"open (http://\S+) in", self.program.shown("stdout")):
                return found[1]
            time.sleep(0.05)
        raise AssertionError(self.program.shown("stderr"))

    @property
    def errors(self) -> str:
        return self.program.shown("stderr")

    def memory(self) -> float:
        """Resident MiB."""
        status = Path(f"/proc/{self.program.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def interrupt(self, number: int = signal.SIGINT) -> float:
        """As Ctrl-C -> seconds until the process has ended."""
        start = time.monotonic()
        os.kill(self.program.process.pid, number)
        self.program.finish(60)
        return time.monotonic() - start

    def files(self) -> list[str]:
        """What lies in the temporary folder of the server, but folders."""
        return [path.name for path in self.folder.rglob("*") if path.is_file()]


class Page:
    """A page that is open in a browser which is not there: its requests."""

    def __init__(self, address: str, client: httpx.Client | None = None) -> None:
        self.client = client or httpx.Client(base_url=address, timeout=60)
        self.reload()
        config = self.client.get("/config").json()
        self.functions = {one["api_name"]: one["id"] for one in config["dependencies"] if one["api_name"]}

    def reload(self) -> None:
        """Becomes another page."""
        self.session = secrets.token_hex(6)

    def upload(self, *files: Path | tuple[str, bytes]) -> list[dict[str, Any]]:
        """Uploads files -> their records, as a field of files has them."""
        pairs = [(file.name, file.read_bytes()) if isinstance(file, Path) else file for file in files]
        answer = self.client.post(f"{API}/upload", files=[("files", pair) for pair in pairs])
        answer.raise_for_status()
        return [
            {"path": path, "orig_name": name, "size": len(data), "meta": {"_type": "gradio.FileData"}}
            for path, (name, data) in zip(answer.json(), pairs, strict=True)
        ]

    def call(self, name: str, *values: object) -> list[Any]:
        """The outputs of an event."""
        body = {"data": values, "fn_index": self.functions[name], "session_hash": self.session}
        joined = self.client.post(f"{API}/queue/join", json=body)
        joined.raise_for_status()
        event = joined.json()["event_id"]
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("event_id") == event and message["msg"] == "process_completed":
                    assert message["success"], message
                    return message["output"]["data"]
        raise AssertionError("the server did not answer")

    def open(self, *images: Path | tuple[str, bytes], window: str = "", parts: str = "") -> str:
        """Chooses an image, or an item of several -> what the page shows of it."""
        return str(self.call("open", self.upload(*images), window, parts)[1])

    def ask(self, model: str, question: str) -> str:
        return str(self.call("ask", model, question)[0])


def texts_of(markup: str) -> str:
    """What a reader sees of a result, in one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


def first_cells(markup: str) -> Sequence[str]:
    """The heads of the rows of a table."""
    return re.findall(r'<th scope="row">(.*?)</th>', markup)
