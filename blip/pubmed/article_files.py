"""The files of an article in a corpus: names that stay in its folder, and what a fetch may write and delete there.

Names come from servers and from catalogues, which may be anyone's. A fetch records what it writes before it writes it;
it overwrites and deletes nothing else.
"""

import hashlib
import os
from pathlib import Path

from blip.data.images import ENDINGS
from blip.files import partial_path
from blip.pubmed.catalogue import Catalogue, File, is_pmcid
from blip.pubmed.failures import FetchError

FOLDER = "articles"  # of a corpus, with a folder for each article
XML = (".xml", ".nxml")
LONGEST = 200  # bytes of a file name; file systems allow 255, and an ending is added while a file is written


def is_file_name(name: object) -> bool:
    """Whether a value is the plain name of an article's XML or of an image, which cannot leave its folder."""
    if not isinstance(name, str) or not name.isprintable() or len(os.fsencode(name)) > LONGEST:
        return False
    return name[:1] not in (".", "") and not {"/", "\\"} & set(name) and name.lower().endswith((*ENDINGS, *XML))


def article_folder(corpus: Path, pmcid: str) -> Path:
    """The folder of an article. FetchError if its name is no PMCID, or if links lead out of the corpus."""
    if not is_pmcid(pmcid):
        raise FetchError(f"{pmcid!r} is no PMCID", lasting=True)
    folder = corpus / FOLDER / pmcid
    for place in (corpus / FOLDER, folder):
        if place.is_symlink():
            raise FetchError(f"{place} is a link, and a fetch writes inside of its corpus only", lasting=True)
    return folder


def claim(catalogue: Catalogue, pmcid: str, folder: Path, *, files: list[File]) -> None:
    """Records files that are about to be written.

    Raises:
        FetchError: a name would leave the folder, or a file exists that no fetch wrote and that has other content.
    """
    written, new = catalogue.written(pmcid), []
    for file in files:
        if not is_file_name(file.name):
            raise FetchError(f"{file.name!r} is no name of an article's file", lasting=True)
        path = folder / file.name
        if partial_path(path).is_symlink():
            raise FetchError(f"{partial_path(path)} is a link: move it away", lasting=True)
        if os.path.lexists(path) and (path.is_symlink() or file.name not in written) and not has_md5(path, file.md5):
            raise FetchError(f"{path} exists, and no fetch wrote it: move it away, and fetch again", lasting=True)
        if file.name not in written:
            new.append(file.name)
    if new:
        catalogue.will_write(pmcid, new)


def has_md5(path: Path, md5: str) -> bool:
    """Whether a regular file exists and has this MD5; False for a link, and where no MD5 is known."""
    if not md5 or path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def remove_others(catalogue: Catalogue, pmcid: str, folder: Path, *, files: list[File]) -> None:
    """Deletes what a fetch wrote for an older version, is still as it was written, and is not among `files`."""
    names = {file.name for file in files}
    for name, md5 in catalogue.written(pmcid).items():
        if name in names:
            continue
        if is_file_name(name) and has_md5(folder / name, md5):
            (folder / name).unlink()
        catalogue.removed(pmcid, name)
