"""The tokenizer of a run: a checkpoint's, a configured one, or one trained on the captions."""

from collections.abc import Iterable
from pathlib import Path

from blip import distributed
from blip.checkpoints import places
from blip.checkpoints.format import TOKENIZER, find_tokenizer
from blip.config import ConfigError, ModelConfig
from blip.tokenizer import Tokenizer, load_tokenizer


def choose_tokenizer(
    config: ModelConfig, texts: Iterable[str], output: Path, *, resume: Path | None, save: bool = True
) -> Tokenizer:
    """The tokenizer of a run; every process has to call this.

    A run that is resumed takes the one of its checkpoint `resume`, since training a tokenizer is not reproducible.
    A new run takes the configured one and saves it in its folder `output`: `train` learns it from `texts`, "" means
    that of `init_from`. `save`: False for an evaluation, which leaves that of the folder as it is.

    Raises:
        ConfigError: neither is given, or the vocabulary differs from the one that `init_from` was trained with.
        CheckpointError: `init_from` has no tokenizer.
    """
    if resume is not None:
        return load_tokenizer(str(resume / TOKENIZER))
    if not save:
        return load_tokenizer(config.tokenizer or str(own_tokenizer(config.init_from)))
    return load_tokenizer(distributed.from_main(lambda: str(_saved(config, texts, output / TOKENIZER))))


def _saved(config: ModelConfig, texts: Iterable[str], path: Path) -> Path:
    if config.tokenizer == "train":
        tokenizer = Tokenizer.train(texts, config.vocab_size)
    else:
        tokenizer = load_tokenizer(config.tokenizer or str(own_tokenizer(config.init_from)))
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    check_vocabulary(path, config.init_from)
    return path


def own_tokenizer(checkpoint: str) -> Path:
    """The tokenizer file of the checkpoint that a run starts from.

    Raises:
        ConfigError: the run starts from no checkpoint.
        CheckpointError: the checkpoint has no tokenizer.
    """
    if not checkpoint:
        raise ConfigError("without init_from there is no tokenizer: set tokenizer, or tokenizer: train")
    return find_tokenizer(places.local(checkpoint))


def check_vocabulary(tokenizer_file: Path, init_from: str) -> None:
    """Compares the vocabulary of a run with the one that its starting weights were trained with.

    Raises:
        ConfigError: they differ, even if their sizes are equal.
    """
    theirs = places.local(init_from) / TOKENIZER
    if init_from and theirs.is_file():
        own, trained_with = (load_tokenizer(str(file)).vocabulary() for file in (tokenizer_file, theirs))
        if own != trained_with:
            raise ConfigError(f"{init_from} was trained with another tokenizer: set tokenizer: {theirs}")
