"""Configuration of `blip pubmed run`, and the addresses of the servers. It needs no extra: `blip options` reads it."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from blip.pubmed.licenses import selected_families

BUCKET = "https://pmc-oa-opendata.s3.amazonaws.com/"
EUTILS = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils/"
OPENI = "https://openi.nlm.nih.gov/api/search"


class PubmedConfig(BaseModel):
    """Options of `blip pubmed run`."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
    former_names: ClassVar[dict[str, str]] = {"workers": "num_workers", "splits": "split_shares"}

    # search and fetch
    query: str  # in the notation of PubMed
    count: int = Field(1000, gt=0)  # articles at most; of Open-i, figures [articles]
    source: Literal["pmc", "openi"] = "pmc"  # PubMed Central, or Open-i, an index of figures
    email: str = ""  # NCBI asks for it
    api_key: str = ""  # of NCBI: ten requests per second instead of three
    licenses: list[str] = ["CC-BY", "CC0"]  # empty: all that are named
    retracted: bool = False  # retracted articles too
    folder: str = "corpus"  # of the articles, lines and sub-figures
    dataset: str = "dataset"  # folder of the data set
    num_workers: int = Field(4, gt=0)  # downloads, or processes, at the same time [downloads]
    max_image_mb: int = Field(512, gt=0)  # of an image's file; larger ones count as unreadable [MiB]
    rate: float = Field(10.0, gt=0)  # requests per second to the bucket [requests/s]

    # sub-figures and data set
    split_figures: bool = True  # divide compound figures and their captions
    read_letters: bool = False  # read panel letters with RapidOCR
    captions: Literal["learned", "rules"] = "learned"  # divide captions by learned readings, or by rules alone
    shared: Literal["all", "own"] = "all"  # words of a sub-figure: also those that all panels share, or its own
    min_confidence: float = Field(0.5, ge=0, le=1)  # that a sub-figure needs [probability]
    keep_whole: bool = True  # keep compound figures that were not divided
    min_side: int = Field(64, gt=0)  # pixels of the shorter side [pixels]
    min_words: int = Field(3, gt=0)  # of a caption [words]
    max_words: int = Field(300, gt=0)  # of a caption [words]
    words: list[str] = []  # a caption has one of these; empty: any
    not_words: list[str] = []  # a caption has none of these
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)  # shares of train, val and test, by article [shares]
    decontaminate: list[str] = []  # folders or files of evaluation images to leave out
    shards: bool = False  # also write webdataset shards
    seed: int = 0  # of the division [number]

    # servers
    eutils: str = EUTILS  # base address of ESearch
    openi: str = OPENI  # address of Open-i
    bucket: str = BUCKET  # base address of the open bucket
    max_seconds: float = Field(600.0, gt=0)  # of one exchange with a server, its whole answer included [seconds]
    max_mb: float = Field(512.0, gt=0)  # megabytes of one file [MB]
    max_answer_mb: float = Field(32.0, gt=0)  # megabytes of a listing, of metadata or of a page of results [MB]
    max_ratio: float = Field(200.0, ge=1)  # bytes after decompression for each byte that a server sends [factor]
    max_wait: float = Field(600.0, gt=0)  # seconds to wait at most when a server asks for it [seconds]

    @field_validator("licenses")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        selected_families(names)
        return names
