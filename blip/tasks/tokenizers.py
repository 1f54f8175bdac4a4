"""The tokenizer of a run: a checkpoint's, a configured one, or one trained on the captions."""

from collections.abc import Iterable
from pathlib import Path

from blip import distributed
from blip.checkpoints.format import TOKENIZER, find_tokenizer
from blip.config import ConfigError, ModelConfig
from blip.tokenizer import Tokenizer, load_tokenizer


def choose_tokenizer(config: ModelConfig, texts: Iterable[str], output: Path, *, resume: Path | None) -> Tokenizer:
    """The tokenizer of a run, saved in its folder `output`; every process has to call this.

    A run that is resumed takes the one of its checkpoint `resume`, since training a tokenizer is not reproducible.
    A new run takes the configured one: `train` learns it from `texts`, "" means that of `init_from`.

    Raises:
        ConfigError: neither is given, or the vocabulary differs from the one that `init_from` was trained with.
        CheckpointError: `init_from` has no tokenizer.
    """
    saved = output / TOKENIZER
    if resume is not None:
        tokenizer = load_tokenizer(str(resume / TOKENIZER))
        if distributed.is_main() and not saved.is_file():  # the run continues in another folder
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
    """The tokenizer file of the checkpoint that a run starts from.

    Raises:
        ConfigError: the run starts from no checkpoint.
        CheckpointError: the checkpoint has no tokenizer.
    """
    if not checkpoint:
        raise ConfigError("without init_from there is no tokenizer: set tokenizer, or tokenizer: train")
    return find_tokenizer(checkpoint)


def check_vocabulary(tokenizer_file: Path, init_from: str) -> None:
    """Compares the vocabulary of a run with the one that its starting weights were trained with.

    Raises:
        ConfigError: they differ, even if their sizes are equal.
    """
    theirs = Path(init_from) / TOKENIZER
    if init_from and theirs.is_file():
        own, trained_with = (load_tokenizer(str(file)).vocabulary() for file in (tokenizer_file, theirs))
        if own != trained_with:
            raise ConfigError(f"{init_from} was trained with another tokenizer: set tokenizer: {theirs}")
