"""Opening a catalogue: what it may be instead of one of ours, and catalogues of earlier versions.

A locked, damaged, newer, foreign or empty file has a message of its own. Whatever is wrong, the articles of the corpus
and the file stay as they are.
"""

import sqlite3
from pathlib import Path
from typing import Any

from blip.errors import BlipError
from blip.files import ReadError, parse_json
from blip.pubmed.licenses import UNKNOWN, short_license
from blip.pubmed.retractions import is_retracted

VERSION = 1  # of the tables, in the file's `user_version`; 0 are those before it
OURS = 0x424C4950  # "BLIP", the file's `application_id` from version 1 on
BUSY_SECONDS = 10.0  # to wait for another process
AGAIN = "Put back a copy, or move it away and repeat the search and the fetch: articles on disk are then found again"
COLUMNS = {
    "articles": {"pmcid", "state", "source", "version", "etag", "license", "retracted", "about", "error"},
    "files": {"pmcid", "name", "url", "md5", "done", "error"},
    "searches": {"source", "query", "total", "seen"},
}
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
CREATE TABLE IF NOT EXISTS written (
    pmcid TEXT NOT NULL, name TEXT NOT NULL, md5 TEXT NOT NULL DEFAULT '', PRIMARY KEY (pmcid, name));
"""


class CatalogueError(BlipError):
    """A corpus that cannot be used."""


def open_catalogue(path: Path, create: bool) -> sqlite3.Connection:
    """A connection to a catalogue of this version; one of an earlier version is brought up to it.

    Raises:
        CatalogueError: there is none, or it is locked, damaged, newer or foreign.
    """
    if path.exists() and not path.is_file():
        raise CatalogueError(f"{path} is no file")
    if not create and not path.exists():
        raise CatalogueError(f"{path.parent} holds no {path.name}: begin with `blip pubmed search ... --out "
                             f"{path.parent}`")  # fmt: skip
    if not create and not path.stat().st_size:
        raise CatalogueError(f"{path} is empty: what it recorded is lost. {AGAIN}")
    path.parent.mkdir(parents=True, exist_ok=True)
    db = None
    try:
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA trusted_schema = OFF")
        _check(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        _bring_up_to_date(db, path)
        return db
    except BaseException as error:
        if db is not None:
            db.close()
        if isinstance(error, sqlite3.Error):
            raise described(path, error) from None
        raise


def described(path: Path, error: sqlite3.Error) -> CatalogueError:
    """What an error of SQLite means for the catalogue, and what to do about it."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return CatalogueError(f"{path} is locked: another process writes to it. Nothing is lost: wait until it has "
                              f"ended, and start the same command again")  # fmt: skip
    if code == sqlite3.SQLITE_NOTADB:
        return CatalogueError(f"{path} is no catalogue ({error}): the file was replaced or damaged. {AGAIN}")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM,
                sqlite3.SQLITE_IOERR):  # fmt: skip
        return CatalogueError(f"{path} cannot be written ({error}): check the disk's space and the permissions of the "
                              f"folder, and start the same command again")  # fmt: skip
    return CatalogueError(f"{path} is damaged ({error}). {AGAIN}")


def _check(db: sqlite3.Connection, path: Path) -> None:
    """CatalogueError where a database is not empty and not a catalogue that this version can use."""
    version, owner = _pragma(db, "user_version"), _pragma(db, "application_id")
    names = dict(db.execute("SELECT name, type FROM sqlite_master WHERE type != 'index'").fetchall())
    if not names and not version and not owner:
        return
    if owner == OURS and version > VERSION:
        raise CatalogueError(f"{path} was written by a newer version of blip (its tables have version {version}, this "
                             f"one reads up to {VERSION}): update blip")  # fmt: skip
    others = {name for name, kind in names.items() if kind != "table"}
    if owner not in (0, OURS) or others or (version and owner != OURS) or not COLUMNS.keys() & names.keys():
        raise CatalogueError(f"{path} is a database of another program, no catalogue of blip: name another folder")
    for table, columns in COLUMNS.items():
        there = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        if missing := columns - there:
            raise CatalogueError(f"{path}: its table `{table}` has no {', '.join(sorted(missing))}: it was written by "
                                 f"a version of blip before the first release, or changed. Keep it, and search into "
                                 f"another folder")  # fmt: skip


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _bring_up_to_date(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables that are missing; in a catalogue of version 0, licences and retractions are read anew."""
    if _pragma(db, "user_version") == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if _pragma(db, "user_version") != VERSION:  # another process may have been first
            for statement in TABLES.split(";\n"):
                db.execute(statement)
            # what an earlier version fetched is what it wrote
            db.execute("INSERT OR IGNORE INTO written SELECT pmcid, name, md5 FROM files WHERE done")
            _read_anew(db, path)
            db.execute(f"PRAGMA application_id = {OURS}")
            db.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _read_anew(db: sqlite3.Connection, path: Path) -> None:
    """Licences and retractions of described articles, which earlier versions took for open too often."""
    for pmcid, text in db.execute("SELECT pmcid, about FROM articles WHERE about != '{}'").fetchall():
        try:
            about = parse_json(text, dict[str, Any], path, place=pmcid)
            license, (retracted, _) = short_license(about.get("license_code")), is_retracted(about, "is_retracted")
        except (ReadError, TypeError, AttributeError):
            license, retracted = UNKNOWN, True
        values = (license, retracted, pmcid)
        db.execute("UPDATE articles SET license = ?, retracted = ? WHERE pmcid = ?", values)
