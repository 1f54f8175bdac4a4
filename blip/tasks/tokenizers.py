"""The tokenizer of a run: a checkpoint's, a configured one, or one trained on the captions."""

import json
from collections.abc import Iterable
from pathlib import Path

from blip import distributed
from blip.checkpoints.format import TOKENIZER
from blip.config import ConfigError, ModelConfig
from blip.tokenizer import Tokenizer, load_tokenizer


def choose_tokenizer(config: ModelConfig, texts: Iterable[str], output: Path, resume: Path | None) -> Tokenizer:
    """The checkpoint's tokenizer (training one is not reproducible), else the configured one, saved with the run.

    `tokenizer: train` learns one from `texts`; none named means that of `init_from`.
    """
    saved = output / TOKENIZER
    if resume is not None:
        tokenizer = load_tokenizer(str(resume / TOKENIZER))
        if distributed.is_main() and not saved.is_file():  # the run goes on in another folder
            output.mkdir(parents=True, exist_ok=True)
            tokenizer.save(saved)
        return tokenizer
    if distributed.is_main():
        if config.tokenizer == "train":
            tokenizer = Tokenizer.train(texts, config.vocab_size)
        else:
            tokenizer = load_tokenizer(config.tokenizer or str(own_tokenizer(config.init_from)))
        output.mkdir(parents=True, exist_ok=True)
        tokenizer.save(saved)
        check_vocabulary(saved, config.init_from)
    distributed.barrier()
    return load_tokenizer(str(saved))


def own_tokenizer(checkpoint: str) -> Path:
    """The tokenizer that lies in a checkpoint's folder."""
    if not checkpoint:
        raise ConfigError("without init_from there is no tokenizer: set tokenizer, or tokenizer: train")
    for name in (TOKENIZER, "vocab.txt"):
        if (Path(checkpoint) / name).is_file():
            return Path(checkpoint) / name
    raise ConfigError(
        f"{checkpoint} comes without a tokenizer: set tokenizer; for the released models it is the vocab.txt of "
        "bert-base-uncased"
    )


def check_vocabulary(tokenizer_file: Path, init_from: str) -> None:
    """ConfigError where the weights that the run starts from know other words, even if as many."""
    theirs = Path(init_from) / TOKENIZER
    if init_from and theirs.is_file():
        vocab, known = (json.loads(file.read_text("utf-8"))["model"]["vocab"] for file in (tokenizer_file, theirs))
        if vocab != known:
            raise ConfigError(f"{init_from} was trained with another tokenizer: set tokenizer: {theirs}")
