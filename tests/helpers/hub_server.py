"""A local server that speaks the protocol of the Hugging Face hub: models and data sets from folders, and plain files.

    with HubServer() as hub:
        hub.add("models", "lab/captioner", folder)             # revision main; `revision="v1"` adds another
        hub.add("datasets", "lab/xray-qa", folder)             # parquet files, or a folder of images with metadata
        hub.add_file("models/model.pth", path)                 # at hub.url + "/files/models/model.pth"
        run_command(..., env=hub.environment(cache))           # for a command in a process of its own
        hub.use_here(monkeypatch, cache)                       # for huggingface_hub and datasets in this process

`huggingface_hub.snapshot_download` and `datasets.load_dataset` work against it as against the hub. A repository with
`token=` answers 401 without that token and, like the hub, says nothing else of it; with `gated=True` it says that its
licence has to be accepted. `fail` makes requests go wrong: `hub.fail(r"model\\.safetensors", "cut", times=2)`. `asked`
lists the requests ("GET /api/models/lab/captioner"), so that a test can say what was fetched and what was not.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

# kept as LFS objects on the hub: a request for one is redirected to another address, here under /objects/
LARGE = {".safetensors", ".bin", ".pth", ".parquet", ".arrow", ".png", ".jpg", ".jpeg", ".zip", ".tar", ".h5"}
DATE = "2024-01-02T03:04:05.000Z"
_PART = r"/(revision|tree|paths-info|refs)(?:/([^/]+)(?:/(.+))?)?"
API = re.compile(rf"/api/(models|datasets)/((?:[^/]+/)?[^/]+?)(?:{_PART})?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)")


@dataclass
class Stored:
    """A file of a repository."""

    path: str
    content: bytes

    @property
    def large(self) -> bool:
        return Path(self.path).suffix.lower() in LARGE

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob

    def entry(self) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}} if self.large else {}
        return {"type": "file", "oid": self.blob, "size": len(self.content), "path": self.path, **lfs}


@dataclass
class Commit:
    """A state of a repository."""

    files: dict[str, Stored]

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1("".join(f"{f.path} {f.blob}\n" for f in self.files.values()).encode()).hexdigest()

    def tree(self, below: str = "", recursive: bool = True) -> list[dict[str, Any]]:
        """The entries under a folder, folders among them."""
        start = f"{below.rstrip('/')}/" if below else ""
        files = [file for name, file in self.files.items() if name.startswith(start)]
        folders = {str(parent) for file in files for parent in Path(file.path).parents if str(parent) != "."}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
        entries = [entry for entry in entries if str(entry["path"]).startswith(start)]
        entries += [file.entry() for file in files]
        return [entry for entry in entries if recursive or "/" not in entry["path"][len(start) :]]


@dataclass
class Repository:
    """Its commits by name of branch or tag."""

    name: str
    revisions: dict[str, Commit]
    token: str = ""
    gated: bool = False

    def commit(self, revision: str) -> Commit | None:
        by_sha = {commit.sha: commit for commit in self.revisions.values()}
        return self.revisions.get(revision) or by_sha.get(revision)


@dataclass
class Fault:
    """What is done to requests whose path matches."""

    path: re.Pattern[str]
    kind: str
    times: int


class HubServer:
    """The server, on a free port of the loopback device, from `with` to the end of its block."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.files: dict[str, Stored] = {}
        self.faults: list[Fault] = []
        self.redirections: dict[str, str] = {}  # path -> where it leads
        self.heads: dict[str, str] = {}  # added to every answer
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []  # of each request
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that went away

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def elsewhere(self) -> str:
        """The same server under another host: libraries follow redirections within a host while they look at a file."""
        return self.url.replace("127.0.0.1", "localhost")

    def add(
        self, kind: str, name: str, folder: Path, *, revision: str = "main", token: str = "", gated: bool = False
    ) -> str:
        """Publishes the files of a folder as they are now, under `kind` ("models" or "datasets") -> the commit."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        commit = Commit({name: Stored(name, path.read_bytes()) for name, path in files.items()})
        there = self.repositories.setdefault((kind, name), Repository(name, {}))
        there.revisions[revision], there.token, there.gated = commit, token, gated
        return commit.sha

    def add_file(self, name: str, path: Path) -> str:
        """Publishes one file, outside any repository -> its address."""
        self.files[name] = Stored(name, path.read_bytes())
        return f"{self.url}/files/{name}"

    def fail(self, path: str, kind: str, times: int = 1_000_000) -> None:
        """Requests whose path (with the leading slash) matches go wrong, so many times.

        Args:
            kind: a status such as "503"; "cut": the connection ends in the middle of the body; "wrong": another body
                of the same length; "wrong-range": the range of another part; "no-range": ranges are ignored; "slow":
                the body comes byte by byte; "none": the connection ends without an answer.
        """
        self.faults.append(Fault(re.compile(path), kind, times))

    def fetched(self) -> list[str]:
        """The names of files that were asked for with GET, in order."""
        paths = [line.removeprefix("GET ") for line in self.asked if line.startswith("GET ")]
        names = [match[4] for path in paths if (match := RESOLVE.fullmatch(path))]
        return names + [path.removeprefix("/files/") for path in paths if path.startswith("/files/")]

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables for a process that is to use this server as the hub, with its caches in `cache`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache / "huggingface"),
            "HF_HUB_CACHE": str(cache / "huggingface" / "hub"),
            "HF_DATASETS_CACHE": str(cache / "huggingface" / "datasets"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "BLIP_CACHE": str(cache / "blip"),
            "no_proxy": "127.0.0.1,localhost",
        }

    def use_here(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """The same for this process, whose libraries may have been imported before."""
        use_hub_here(monkeypatch, self.environment(cache))


def use_hub_here(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Sets the variables of `HubServer.environment`, also where huggingface_hub and datasets have read them already."""
    from huggingface_hub import constants

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    place = {"ENDPOINT": environment["HF_ENDPOINT"], "HF_HUB_CACHE": environment["HF_HUB_CACHE"]}
    template = {"HUGGINGFACE_CO_URL_TEMPLATE": place["ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}"}
    token = {"HF_TOKEN_PATH": str(Path(environment["HF_HOME"]) / "token")}
    offline = {"HF_HUB_OFFLINE": environment["HF_HUB_OFFLINE"] == "1", "HF_HUB_DISABLE_XET": True}
    # older versions of the library bind this one by name
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", *template.values(), raising=False)
    for name, setting in {**place, **template, **token, **offline, "HF_HOME": environment["HF_HOME"]}.items():
        monkeypatch.setattr(constants, name, setting, raising=False)
    with suppress(ImportError):
        import datasets.config

        cache = Path(environment["HF_DATASETS_CACHE"])
        for name, setting in {"HF_ENDPOINT": place["ENDPOINT"], "HF_DATASETS_CACHE": cache}.items():
            monkeypatch.setattr(datasets.config, name, setting, raising=False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline["HF_HUB_OFFLINE"], raising=False)
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(cache / "modules"), raising=False)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.headers.append({key.lower(): value for key, value in self.headers.items()})
        self.fault = ""
        for fault in self.hub.faults:
            if fault.times > 0 and fault.path.search(path) and (self.command != "HEAD" or fault.kind.isdigit()):
                fault.times -= 1
                self.fault = fault.kind
                break
        if self.fault == "none":
            self.close_connection = True
        elif self.fault.isdigit():
            self._send(int(self.fault), b"{}", {})
        elif path in self.hub.redirections:
            self._send(302, b"", {"Location": self.hub.redirections[path]})
        elif path.startswith("/files/"):
            stored = self.hub.files.get(path.removeprefix("/files/"))
            self._file(stored, {"ETag": f'"{stored.sha256}"'}) if stored else self._missing("EntryNotFound")
        elif path.startswith("/objects/"):
            self._object(path.removeprefix("/objects/"))
        elif match := API.fullmatch(address.path):
            self._api(match, parse_qs(address.query))
        elif match := RESOLVE.fullmatch(path):
            self._resolve(match)
        else:
            self._missing("")

    # ---- what is asked for -------------------------------------------------------------------------------------------

    def _repository(self, kind: str, name: str) -> Repository | None:
        """The repository, or None after the answer to who may not see it."""
        found = self.hub.repositories.get((kind, name))
        authorisation = self.headers.get("Authorization", "")
        if found is None:  # the hub does not tell strangers whether there is one
            status = 404 if authorisation else 401
            self._json({"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}, status)
        elif found.token and authorisation != f"Bearer {found.token}":
            status = 403 if found.gated and authorisation else 401
            code = "GatedRepo" if found.gated else "RepoNotFound"
            self._json({"error": "Access is restricted"}, {"X-Error-Code": code}, status)
            return None
        return found

    def _commit(self, repository: Repository, revision: str) -> Commit | None:
        commit = repository.commit(unquote(revision))
        if commit is None:
            self._missing("RevisionNotFound")
        return commit

    def _api(self, match: re.Match[str], query: dict[str, list[str]]) -> None:
        kind, name, what, revision, below = match.groups()
        repository = self._repository(kind, unquote(name))
        if repository is None:
            return
        if what == "refs":
            branches = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": commit.sha}
                        for one, commit in repository.revisions.items()]  # fmt: skip
            self._json({"branches": branches, "tags": [], "converts": []})
            return
        commit = self._commit(repository, revision or "main")
        if commit is None:
            return
        if what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = commit.tree(unquote(below or ""), recursive)
            self._json(entries) if entries or not below else self._missing("EntryNotFound")
        elif what == "paths-info":
            asked = parse_qs(self.body.decode()).get("paths", [])
            if self.headers.get("Content-Type", "").startswith("application/json"):
                asked = json.loads(self.body)["paths"]
            asked = [asked] if isinstance(asked, str) else asked
            self._json([entry for entry in commit.tree() if entry["path"] in asked])
        else:
            siblings = [{"rfilename": file.path, "size": len(file.content), "blobId": file.blob}
                        | ({"lfs": {"sha256": file.sha256, "size": len(file.content), "pointerSize": 134}}
                           if file.large else {}) for file in commit.files.values()]  # fmt: skip
            about = {"id": repository.name, "modelId": repository.name, "sha": commit.sha, "siblings": siblings}
            more = {"private": False, "gated": "auto" if repository.gated else False, "disabled": False, "tags": []}
            self._json({**about, **more, "lastModified": DATE, "createdAt": DATE, "downloads": 0, "likes": 0})

    def _resolve(self, match: re.Match[str]) -> None:
        dataset, name, revision, path = match.groups()
        repository = self._repository("datasets" if dataset else "models", name)
        commit = self._commit(repository, revision) if repository else None
        if commit is None:
            return
        stored, head = commit.files.get(path), {"X-Repo-Commit": commit.sha}
        if stored is None:
            self._json({"error": "Entry not found"}, {**head, "X-Error-Code": "EntryNotFound"}, 404)
        elif stored.large:
            linked = {"X-Linked-ETag": f'"{stored.etag}"', "X-Linked-Size": str(len(stored.content))}
            self._send(302, b"", {**head, **linked, "Location": f"{self.hub.elsewhere}/objects/{stored.sha256}"})
        else:
            self._file(stored, {**head, "ETag": f'"{stored.etag}"'})

    def _object(self, sha256: str) -> None:
        commits = [c for repository in self.hub.repositories.values() for c in repository.revisions.values()]
        found = [file for commit in commits for file in commit.files.values() if file.large and file.sha256 == sha256]
        self._file(found[0], {"ETag": f'"{sha256}"'}) if found else self._missing("EntryNotFound")

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _file(self, stored: Stored, head: dict[str, str]) -> None:
        content, status = stored.content, 200
        if self.fault == "wrong":
            content = bytes(byte ^ 1 for byte in content)
        head = {**head, "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if match and self.fault != "no-range" and condition in (None, head.get("ETag")):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if first >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            shift = 1 if self.fault == "wrong-range" else 0
            head["Content-Range"] = f"bytes {first + shift}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, head)

    def _missing(self, code: str) -> None:
        self._json({"error": "Not found"}, {"X-Error-Code": code} if code else {}, 404)

    def _json(self, value: Any, head: dict[str, str] | None = None, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(head or {})})

    def _send(self, status: int, body: bytes, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**head, **self.hub.heads}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(ConnectionError):
            if self.fault == "cut":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif self.fault == "slow":
                for number in range(len(body)):
                    self.wfile.write(body[number : number + 1])
                    self.wfile.flush()
                    time.sleep(0.05)
            else:
                self.wfile.write(body)
