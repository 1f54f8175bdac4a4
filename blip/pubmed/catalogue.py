"""The articles and files of a corpus in one SQLite file, written so that a kill loses one request at most.

    found -> described -> done, or failed (is tried again), or gone (does not exist, is not tried again)

An article is `found` by a search, `described` when the metadata of its newest version were read (licence, retraction,
files with checksums), `done` when all its files have been written with the right checksum.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.pubmed.catalogue_file import CatalogueError, described, open_catalogue
from blip.pubmed.failures import OddRecord, shown_part
from blip.pubmed.licenses import UNKNOWN

NAME = "catalogue.sqlite"
PMCID = re.compile(r"PMC[0-9]{1,12}")
STATES = ("found", "described", "done", "failed", "gone")
# the same as PMCID, in SQL; a catalogue of others may hold anything
NO_PMCID = ("typeof(pmcid) != 'text' OR substr(pmcid, 1, 3) != 'PMC' OR length(pmcid) NOT BETWEEN 4 AND 15 "
            "OR substr(pmcid, 4) GLOB '*[^0-9]*'")  # fmt: skip


def is_pmcid(value: object) -> bool:
    """Whether a value is PMC and at most twelve digits, so that it can be part of a path or of an address."""
    return isinstance(value, str) and PMCID.fullmatch(value) is not None


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


class Catalogue:
    """The catalogue of a folder. Several threads of one process may use it.

    Args:
        folder: the corpus.
        create: make the catalogue where it is missing.

    Raises:
        CatalogueError: there is no catalogue, or it is locked, damaged, newer or foreign.
    """

    def __init__(self, folder: Path, create: bool = False) -> None:
        self.folder, self.path = folder, folder / NAME
        self.lock = threading.RLock()
        self.db = open_catalogue(self.path, create)

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all changes of the block are made, or none. CatalogueError where that is impossible."""
        with self.lock, self._told():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of SQLite become CatalogueError."""
        try:
            yield
        except (sqlite3.InterfaceError, sqlite3.DataError) as error:  # of a value, not of the file
            raise OddRecord(f"{self.path}: a value that cannot be recorded ({error})") from None
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            raise described(self.path, error) from None

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.lock, self._told():
            return self.db.execute(query, values).fetchall()

    # ---- searches ----------------------------------------------------------------------------------------------------

    def progress(self, source: str, query: str) -> tuple[int, int | None]:
        """(results read so far, total number of results or None before the first answer) of a search."""
        rows = self._rows("SELECT seen, total FROM searches WHERE source = ? AND query = ?", source, query)
        if not rows:
            return 0, None
        seen, total = rows[0]
        if not isinstance(seen, int) or not isinstance(total, int) or min(seen, total) < 0:
            raise CatalogueError(f"{self.path}: its record of the search {query!r} cannot be read: use --again")
        return seen, total

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
        return sorted((row[0] for row in rows if is_pmcid(row[0])), key=lambda pmcid: (len(pmcid), pmcid))

    def refuse_odd_names(self) -> int:
        """Marks rows whose article is no PMCID, which `pmcids` leaves out, as gone; returns how many are new."""
        why = "its name is no PMCID"
        with self._change() as db:
            return db.execute(
                f"UPDATE articles SET state = 'gone', error = ? WHERE ({NO_PMCID}) AND error != ?", (why, why)
            ).rowcount

    def entry(self, pmcid: str) -> Entry:
        """One article, with its files in the order of its metadata. OddRecord where that is impossible."""
        names = "state, version, etag, license, retracted"
        rows = self._rows(f"SELECT {names} FROM articles WHERE pmcid = ?", pmcid)
        files = self._rows("SELECT name, url, md5, done FROM files WHERE pmcid = ? ORDER BY rowid", pmcid)
        if not rows:
            raise OddRecord(f"{pmcid} is not in the catalogue")
        state, version, etag, license, retracted = rows[0]
        texts = [state, etag, license, *(text for file in files for text in file[:3])]
        known = isinstance(version, int | None) and 0 <= (version or 0) < 10**6
        if not all(isinstance(text, str) for text in texts) or not known or state not in STATES:
            raise OddRecord(f"{self.path}: its record of {pmcid} cannot be read")
        listed = [File(name, url, md5, done == 1) for name, url, md5, done in files]
        return Entry(pmcid, state, version, etag, license, retracted != 0, listed)

    def describe(self, pmcid: str, version: int, etag: str, *, license: str, retracted: bool, about: dict[str, Any],
                 files: list[File], note: str = "") -> None:  # fmt: skip
        """Records the metadata of the newest version of an article.

        Args:
            version: its number.
            etag: of the metadata.
            license: family of the licence, such as CC-BY.
            retracted: whether it was retracted.
            about: the metadata.
            files: the XML and the images.
            note: what `errors` reports of it although nothing failed.
        """
        with self._change() as db:
            db.execute(
                "UPDATE articles SET state = 'described', error = ?, version = ?, etag = ?, license = ?, "
                "retracted = ?, about = ? WHERE pmcid = ?",
                (note, version, etag, license, retracted, json.dumps(about, sort_keys=True), pmcid),
            )
            db.execute("DELETE FROM files WHERE pmcid = ?", (pmcid,))
            rows = [(pmcid, file.name, file.url, file.md5) for file in files]
            db.executemany("INSERT OR IGNORE INTO files (pmcid, name, url, md5) VALUES (?, ?, ?, ?)", rows)

    def file_done(self, pmcid: str, name: str, md5: str) -> None:
        with self._change() as db:
            own = (md5, pmcid, name)
            db.execute("UPDATE files SET done = 1, md5 = ?, error = '' WHERE pmcid = ? AND name = ?", own)
            db.execute("UPDATE written SET md5 = ? WHERE pmcid = ? AND name = ?", own)

    def file_failed(self, pmcid: str, name: str, error: str) -> None:
        with self._change() as db:
            db.execute("UPDATE files SET error = ? WHERE pmcid = ? AND name = ?", (shown_part(error), pmcid, name))

    def written(self, pmcid: str) -> dict[str, str]:
        """Files in the folder of an article that a fetch wrote, with their MD5 ("": begun, or not known)."""
        rows = self._rows("SELECT name, md5 FROM written WHERE pmcid = ?", pmcid)
        return {name: md5 for name, md5 in rows if isinstance(name, str) and isinstance(md5, str)}

    def will_write(self, pmcid: str, names: list[str]) -> None:
        """Records files before they are written."""
        with self._change() as db:
            rows = [(pmcid, name) for name in names]
            db.executemany("INSERT OR IGNORE INTO written (pmcid, name) VALUES (?, ?)", rows)

    def removed(self, pmcid: str, name: str) -> None:
        """Records that a file of an earlier version is there no more."""
        with self._change() as db:
            db.execute("DELETE FROM written WHERE pmcid = ? AND name = ?", (pmcid, name))

    def set_state(self, pmcid: str, state: str, error: str = "") -> None:
        with self._change() as db:
            db.execute("UPDATE articles SET state = ?, error = ? WHERE pmcid = ?", (state, shown_part(error), pmcid))

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
        return {pmcid: (license if isinstance(license, str) else UNKNOWN, retracted != 0)
                for pmcid, license, retracted in rows if is_pmcid(pmcid)}  # fmt: skip

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
