"""The articles and files of a corpus in one SQLite file, written so that a kill loses one request at most.

    found -> described -> done, or failed (is tried again), or gone (does not exist, is not tried again)

An article is `found` by a search, `described` when the metadata of its newest version were read (licence, retraction,
files with checksums), `done` when all its files have been written with the right checksum.
"""

import fcntl
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from blip.errors import BlipError

NAME = "catalogue.sqlite"
TABLES = """
CREATE TABLE IF NOT EXISTS articles (
    pmcid TEXT PRIMARY KEY, state TEXT NOT NULL, source TEXT NOT NULL, version INTEGER, etag TEXT NOT NULL DEFAULT '',
    license TEXT NOT NULL DEFAULT '', retracted INTEGER NOT NULL DEFAULT 0, about TEXT NOT NULL DEFAULT '{}',
    error TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS by_state ON articles (state);
CREATE TABLE IF NOT EXISTS files (
    pmcid TEXT NOT NULL, name TEXT NOT NULL, url TEXT NOT NULL, md5 TEXT NOT NULL DEFAULT '',
    done INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '', PRIMARY KEY (pmcid, name));
CREATE TABLE IF NOT EXISTS searches (
    source TEXT NOT NULL, query TEXT NOT NULL, total INTEGER, seen INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (source, query));
"""


class CatalogueError(BlipError):
    """A corpus that cannot be used."""


@dataclass
class File:
    """One file of an article."""

    name: str
    url: str
    md5: str = ""
    done: bool = False


@dataclass
class Entry:
    """One article; metadata are empty until it has been described."""

    pmcid: str
    state: str
    version: int | None = None
    etag: str = ""
    license: str = ""
    retracted: bool = False
    files: list[File] = field(default_factory=list)


def is_true(value: object) -> bool:
    """Whether a value of the metadata means yes, as a boolean or as text."""
    return value is True or str(value).strip().lower() in ("true", "yes", "1")


class Catalogue:
    """The catalogue of a folder. Several threads of one process may use it.

    Args:
        folder: the corpus.
        create: make the catalogue where it is missing.

    Raises:
        CatalogueError: there is no catalogue, or it is damaged.
    """

    def __init__(self, folder: Path, create: bool = False) -> None:
        self.folder, path = folder, folder / NAME
        if not create and not path.exists():
            raise CatalogueError(f"{folder} holds no {NAME}: begin with `blip pubmed search ... --out {folder}`")
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.held: TextIO | None = None
        try:
            self.db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.executescript(TABLES)
        except sqlite3.DatabaseError as error:
            raise CatalogueError(f"{path}: {error}; remove it, and the next search and fetch write it again") from None

    def lock_folder(self) -> None:
        """Allows one fetch at a time (two would exceed the rate and write the same files), else CatalogueError."""
        self.held = open(self.folder / "fetch.lock", "w")  # noqa: SIM115 (held until the catalogue is closed)
        try:
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CatalogueError(f"{self.folder}: another fetch is at work there") from None

    def close(self) -> None:
        self.db.close()
        if self.held:
            self.held.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all changes of the block are made, or none."""
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.lock:
            return self.db.execute(query, values).fetchall()

    # ---- searches ----------------------------------------------------------------------------------------------------

    def progress(self, source: str, query: str) -> tuple[int, int | None]:
        """(results read so far, total number of results or None before the first answer) of a search."""
        rows = self._rows("SELECT seen, total FROM searches WHERE source = ? AND query = ?", source, query)
        return rows[0] if rows else (0, None)

    def add_page(self, source: str, query: str, seen: int, *, total: int, pmcids: list[str]) -> int:
        """Records a page of results; returns how many of its articles are new.

        Args:
            source: "pmc" or "openi".
            query: the search.
            seen: results read so far, including this page.
            total: results of the search.
            pmcids: articles of this page.
        """
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO searches VALUES (?, ?, ?, ?)", (source, query, total, seen))
            before = db.total_changes
            rows = [(pmcid, source) for pmcid in pmcids]
            db.executemany("INSERT OR IGNORE INTO articles (pmcid, state, source) VALUES (?, 'found', ?)", rows)
            return db.total_changes - before

    def forget_search(self, source: str, query: str) -> None:
        """The search starts again at its first page."""
        with self._change() as db:
            db.execute("DELETE FROM searches WHERE source = ? AND query = ?", (source, query))

    # ---- articles ----------------------------------------------------------------------------------------------------

    def pmcids(self, *states: str) -> list[str]:
        """Articles in one of these states, sorted by number."""
        marks = ",".join("?" * len(states))
        rows = self._rows(f"SELECT pmcid FROM articles WHERE state IN ({marks})", *states)
        return sorted((row[0] for row in rows), key=lambda pmcid: (len(pmcid), pmcid))

    def entry(self, pmcid: str) -> Entry:
        """One article, with its files in the order of its metadata."""
        names = "pmcid, state, version, etag, license, retracted"
        row = self._rows(f"SELECT {names} FROM articles WHERE pmcid = ?", pmcid)[0]
        files = self._rows("SELECT name, url, md5, done FROM files WHERE pmcid = ? ORDER BY rowid", pmcid)
        listed = [File(name, url, md5, bool(done)) for name, url, md5, done in files]
        pmcid, state, version, etag, license, retracted = row
        return Entry(pmcid, state, version, etag, license, bool(retracted), listed)

    def describe(self, pmcid: str, version: int, etag: str, *, license: str, about: dict[str, Any],
                 files: list[File]) -> None:  # fmt: skip
        """Records the metadata of the newest version of an article.

        Args:
            version: its number.
            etag: of the metadata.
            license: family of the licence, such as CC-BY.
            about: the metadata.
            files: the XML and the images.
        """
        with self._change() as db:
            db.execute(
                "UPDATE articles SET state = 'described', error = '', version = ?, etag = ?, license = ?, "
                "retracted = ?, about = ? WHERE pmcid = ?",
                (version, etag, license, is_true(about.get("is_retracted")), json.dumps(about, sort_keys=True), pmcid),
            )
            db.execute("DELETE FROM files WHERE pmcid = ?", (pmcid,))
            rows = [(pmcid, file.name, file.url, file.md5) for file in files]
            db.executemany("INSERT OR IGNORE INTO files (pmcid, name, url, md5) VALUES (?, ?, ?, ?)", rows)

    def file_done(self, pmcid: str, name: str, md5: str) -> None:
        with self._change() as db:
            db.execute(
                "UPDATE files SET done = 1, md5 = ?, error = '' WHERE pmcid = ? AND name = ?", (md5, pmcid, name)
            )

    def file_failed(self, pmcid: str, name: str, error: str) -> None:
        with self._change() as db:
            db.execute("UPDATE files SET error = ? WHERE pmcid = ? AND name = ?", (error, pmcid, name))

    def set_state(self, pmcid: str, state: str, error: str = "") -> None:
        with self._change() as db:
            db.execute("UPDATE articles SET state = ?, error = ? WHERE pmcid = ?", (state, error, pmcid))

    def forget_version(self, pmcid: str) -> None:
        """The metadata are read again by the next fetch."""
        with self._change() as db:
            db.execute("UPDATE articles SET version = NULL WHERE pmcid = ?", (pmcid,))

    def renew(self, etags: dict[str, tuple[int, str]]) -> list[str]:
        """Marks the articles that have a newer version, or changed metadata, to be described again; returns them.

        Args:
            etags: article -> (version, ETag of its metadata) in an inventory. One that is older than the catalogue
                changes nothing.
        """
        changed = []
        with self._change() as db:
            for pmcid, (version, etag) in etags.items():
                row = db.execute("SELECT version, etag, state FROM articles WHERE pmcid = ?", (pmcid,)).fetchone()
                if row is None or row[2] == "found":
                    continue
                if version > (row[0] or 0) or (version == row[0] and etag and row[1] and etag != row[1]):
                    db.execute("UPDATE articles SET state = 'found', version = NULL WHERE pmcid = ?", (pmcid,))
                    changed.append(pmcid)
        return changed

    def license_and_retraction(self) -> dict[str, tuple[str, bool]]:
        """(licence, retracted) of each article that is done; newer than the statements in its XML."""
        rows = self._rows("SELECT pmcid, license, retracted FROM articles WHERE state = 'done'")
        return {pmcid: (license, bool(retracted)) for pmcid, license, retracted in rows}

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of articles by state and by licence, of retracted articles, and of files known and fetched."""
        by_state = dict(self._rows("SELECT state, COUNT(*) FROM articles GROUP BY state ORDER BY state"))
        licenses = (
            "SELECT license, COUNT(*) FROM articles WHERE state != 'found' GROUP BY license ORDER BY COUNT(*) DESC"
        )
        retracted = self._rows("SELECT COUNT(*) FROM articles WHERE retracted")[0][0]
        files = self._rows("SELECT COUNT(*), COALESCE(SUM(done), 0) FROM files")[0]
        return {"state": by_state, "license": dict(self._rows(licenses)), "retracted": {"retracted": retracted},
                "files": {"known": files[0], "here": files[1]}}  # fmt: skip

    def errors(self, most: int = 5) -> list[str]:
        """Messages of the first few articles that failed."""
        rows = self._rows("SELECT pmcid, error FROM articles WHERE error != '' ORDER BY pmcid LIMIT ?", most)
        return [f"{pmcid}: {error}" for pmcid, error in rows]
