"""The open bucket of PubMed Central: listings, metadata of articles and the addresses of their files.

Everything that a server answers is checked here: names that stay in their folder, numbers, types and lengths.
"""

import re
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

from lxml import etree
from pydantic import BaseModel, Field, ValidationError

from blip.data.images import ENDINGS
from blip.files import ReadError, parse_json
from blip.pubmed.article_files import XML, is_file_name
from blip.pubmed.catalogue import Catalogue, File, is_pmcid
from blip.pubmed.failures import FetchError
from blip.pubmed.http_client import Client
from blip.pubmed.licenses import short_license
from blip.pubmed.retractions import is_retracted

Url = Annotated[str, Field(max_length=2000)]


class Metadata(BaseModel):
    """What is read of the metadata of a version; licence and retraction have grammars of their own."""

    pmcid: str | None = Field(None, max_length=100)
    version: int | None = None
    xml_url: Url
    media_urls: list[Url] | None = Field(None, max_length=5000)


class NotInBucket(FetchError):
    """The bucket has no version of an article."""


def folders(client: Client, bucket: str, prefix: str) -> list[str]:
    """The folders of the bucket whose names begin with a prefix.

    Raises:
        FetchError: the bucket does not answer with a listing.
    """
    listing = client.get(bucket, {"list-type": "2", "prefix": prefix, "delimiter": "/"})
    try:
        root = etree.fromstring(listing, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except (etree.XMLSyntaxError, ValueError) as error:
        raise FetchError(f"the bucket's listing is not XML ({error})", shared=True) from None
    if not root.tag.endswith("ListBucketResult"):
        raise FetchError(f"{bucket} answers with <{root.tag}>, no listing: is it a bucket's address?", shared=True)
    return [element.text or "" for element in root.iter("{*}Prefix")]


def describe(catalogue: Catalogue, client: Client, pmcid: str, *, bucket: str) -> None:
    """Records the metadata of an article's newest version in the catalogue.

    Raises:
        NotInBucket: there is no version. FetchError: the metadata cannot be read.
    """
    if not is_pmcid(pmcid):
        raise FetchError(f"{pmcid!r} is no PMCID", lasting=True)
    prefixes = [prefix for prefix in folders(client, bucket, f"{pmcid}.") if prefix.startswith(f"{pmcid}.")]
    versions = [int(m[1]) for p in prefixes if (m := re.fullmatch(rf"{pmcid}\.([0-9]{{1,5}})/", p))]
    if not versions and any(prefix != f"{pmcid}." for prefix in prefixes):
        raise FetchError(f"the bucket lists no number of a version, but {prefixes[-1][:60]!r}", lasting=True)
    if not versions:
        raise NotInBucket("not in the open bucket (no open licence, or removed)", lasting=True)
    version = max(versions)
    body, etag = client.get_tagged(f"{bucket}metadata/{pmcid}.{version}.json")
    try:
        about = parse_json(body, dict[str, Any], pmcid)
        metadata = Metadata.model_validate(about)
        urls = [metadata.xml_url, *(url for url in metadata.media_urls or [] if is_image(url))]
        files = [file_of(url) for url in urls]
    except ReadError as error:
        raise FetchError(f"its metadata cannot be read ({error.problem})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise FetchError(f"its metadata cannot be read ({where}: {first['msg']})") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FetchError(f"its metadata cannot be read ({error!r})") from None
    for name, stated, asked in (("pmcid", metadata.pmcid, pmcid), ("version", metadata.version, version)):
        if stated not in (None, asked):
            raise FetchError(f"its metadata are those of {name} {stated}, not of {asked}")
    if not files[0].name.lower().endswith(XML):
        raise FetchError(f"its metadata name {files[0].name!r} as its XML", lasting=True)
    retracted, note = is_retracted(about, "is_retracted")
    license = short_license(about.get("license_code"))
    catalogue.describe(pmcid, version, etag, license=license, retracted=retracted, about=about, files=files, note=note)


def file_of(url: str) -> File:
    """s3://bucket/PMC1.1/name.jpg?md5=... (or https) -> name, key in the bucket, checksum; FetchError for no name."""
    parts = urlsplit(url)
    key = unquote(parts.path.lstrip("/"))
    name = key.rpartition("/")[2]
    if not is_file_name(name) or not key.isprintable():
        raise FetchError(f"{url[:300]}: names no file of an article", lasting=True)
    return File(name, key, parse_qs(parts.query).get("md5", [""])[0].lower())


def is_image(url: str) -> bool:
    """Whether an address or a name ends like an image."""
    return urlsplit(url).path.lower().endswith(ENDINGS)


def base(address: str) -> str:
    """An address that ends in a slash, so that names can be appended."""
    return address.rstrip("/") + "/"
