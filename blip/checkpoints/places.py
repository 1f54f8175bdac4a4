"""Where weights are: a path, a repository of the Hugging Face hub or an address -> a path of this machine.

Everything that is given a checkpoint by name asks `local`, so that each name means the same everywhere.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from blip.checkpoints import download, language_files
from blip.checkpoints.adapter_files import ADAPTER, ADAPTER_INFO
from blip.checkpoints.format import INFO, TOKENIZER, WEIGHTS
from blip.checkpoints.info import read_info
from blip.checkpoints.states import PICKLED, names_of_weights
from blip.errors import InputError
from blip.hub import names, repository
from blip.hub.names import Address, HubName

RUN_CONFIG = "config.yaml"  # what the folder of a run has, and no checkpoint
IN_RUN = ("best", "checkpoints/latest")  # its weights, the first choice first; `latest` may be a file, not a link
# beside the weights, where a repository has them
SMALL = (
    INFO, "config.json", ADAPTER_INFO, TOKENIZER, "vocab.txt", "tokenizer_config.json", "special_tokens_map.json",
    "preprocessor_config.json", "processor_config.json", "generation_config.json",
)  # fmt: skip
# BLIP's released checkpoints, for messages: see docs/checkpoints.md
ON_THE_HUB = tuple(
    f"Salesforce/blip-{name}"
    for name in (
        "image-captioning-base", "image-captioning-large", "vqa-base", "vqa-capfilt-large", "itm-base-coco",
        "itm-base-flickr", "itm-large-coco", "itm-large-flickr",
    )
) + tuple(
    f"Salesforce/blip2-{name}"
    for name in (
        "opt-2.7b", "opt-6.7b", "opt-2.7b-coco", "opt-6.7b-coco", "flan-t5-xl", "flan-t5-xl-coco", "flan-t5-xxl",
        "itm-vit-g", "itm-vit-g-coco",
    )
)  # fmt: skip
RELEASED = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"
FILES = tuple(
    f"model_{name}.pth"
    for name in (
        "base", "base_14M", "base_capfilt_large", "large", "base_retrieval_coco", "large_retrieval_coco",
        "base_retrieval_flickr", "large_retrieval_flickr", "base_caption_capfilt_large", "large_caption",
        "base_vqa_capfilt_large", "vqa", "base_nlvr",
    )
)  # fmt: skip


def local(name: str | Path) -> Path:
    """The path of a checkpoint, which is fetched unless it is in a cache.

    Args:
        name: a path, which is returned as it is, whether or not it exists, but for the folder of a run: there it is
            that of its best weights, or else of its newest checkpoint; `hub:OWNER/NAME`, with `@REVISION` (a
            branch, a tag or a commit); `OWNER/NAME` where there is no such path; or the `https://` address of a `.pth`
            file, with `#sha256=` and the hash that it has to have. An address with `http://` needs one.

    Raises:
        RemoteError: it cannot be had; the message says why.
        InputError: it is no name, or the repository holds no checkpoint.

    Example:
        >>> blip.checkpoints.places.local("hub:Salesforce/blip-vqa-base")
        PosixPath('/home/user/.cache/huggingface/hub/models--Salesforce--blip-vqa-base/snapshots/787b3d3...')
    """
    remote = names.parse(name)
    return _in_run(Path(name)) if remote is None else _fetched(remote)[0]


def _in_run(path: Path) -> Path:
    """The weights in the folder of a run; any other path as it is."""
    if not (path / RUN_CONFIG).is_file() or (path / INFO).exists():
        return path
    newest = sorted(path.glob("checkpoints/step-*"), reverse=True)
    return next((one for one in (*(path / inside for inside in IN_RUN), *newest) if one.is_dir()), path)


def pinned(name: str) -> str:
    """The name with the commit or the SHA-256 of what it stands for today; a path as it is. Errors as of `local`.

    A run keeps such names in its `config.yaml`: whoever repeats it gets the same bytes, or a message.
    """
    remote = names.parse(name)
    return name if remote is None else _fetched(remote)[1]


def local_tokenizer(name: str) -> str:
    """The file of a tokenizer: that of the repository for `hub:OWNER/NAME`, else the name as it is."""
    return str(repository.fetch_tokenizer(name)) if name.startswith(names.HUB) else name


def pinned_tokenizer(name: str) -> str:
    """`pinned` of the name of a tokenizer, which is a repository only where it begins with `hub:`."""
    remote = names.parse(name) if name.startswith(names.HUB) else None
    if not isinstance(remote, HubName):
        return name
    return str(HubName(remote.repository, repository.commit_of(repository.fetch_tokenizer(name).parent)))


def pinned_language_model(name: str) -> str:
    """`pinned` of the name of a language model, whose files are others than those of a checkpoint."""
    remote = names.parse(name)
    if not isinstance(remote, HubName):
        return name
    folder = repository.fetch(remote, language_files.language_model_files)
    return str(HubName(remote.repository, repository.commit_of(folder)))


def is_remote(name: str | Path) -> bool:
    """Whether a name stands for something on another machine."""
    return names.parse(name) is not None


def answers_of(checkpoint: str) -> list[str]:
    """The answers that a checkpoint of VQA was trained with, none where it does not list them.

    Raises:
        CheckpointError: its `model.json` is damaged.
    """
    file = local(checkpoint) / INFO if checkpoint else Path()
    return read_info(file).get("answers", []) if file.is_file() else []


def _fetched(remote: HubName | Address) -> tuple[Path, str]:
    if isinstance(remote, Address):
        path, sha256 = download.fetch(remote, similar_files)
        return path, str(Address(remote.url, sha256))
    folder = repository.fetch(remote, checkpoint_files, similar_repositories)
    name = str(HubName(remote.repository, repository.commit_of(folder)))
    alone = [
        path for path in folder.glob("*.pth") if not (folder / WEIGHTS).exists() and not (folder / PICKLED).exists()
    ]
    return (alone[0] if len(alone) == 1 else folder), name


def checkpoint_files(there: Iterable[str]) -> list[str]:
    """Of the files of a repository, those of its checkpoint, the weights last; safetensors before pickles.

    Raises:
        InputError: it holds none, or several.
    """
    there = set(there)
    weights = [name for name in (WEIGHTS, ADAPTER, PICKLED) if name in there][:1]
    if not weights and (several := names_of_weights(there)):  # of BLIP-2, with its language model
        return [name for name in dict.fromkeys((*SMALL, *language_files.SMALL)) if name in there] + several
    weights = weights or [name for name in sorted(there) if name.endswith(".pth")]
    if not weights:
        parts = any(name.startswith("model-00001-of") for name in there)
        why = "some of its files of weights are missing" if parts else f"it has no {WEIGHTS}, {PICKLED} or .pth file"
        raise InputError(f"the repository holds no checkpoint of BLIP: {why}")
    if len(weights) > 1:
        raise InputError(f"the repository holds {', '.join(weights[:6])}: download one of them and give its path")
    return [name for name in SMALL if name in there] + weights


def similar_repositories(name: str) -> str:
    """The end of a message about a repository that does not exist: released ones of similar names."""
    near = difflib.get_close_matches(name, ON_THE_HUB, n=3, cutoff=0.3) or ON_THE_HUB[:3]
    return f"; the nearest of BLIP's released checkpoints are {', '.join(near)}"


def similar_files(name: str) -> str:
    """The same of a released file."""
    near = difflib.get_close_matches(name, FILES, n=3, cutoff=0.3) or FILES[:3]
    return f"; the nearest of BLIP's released files are {', '.join(near)} at {RELEASED}"
