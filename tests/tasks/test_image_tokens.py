"""Images that begin small and patches left out: when, which options are refused, and that every task obeys."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fine_tuning import CPU, TASKS, configure
from torch import Tensor, nn

from blip.config import ConfigError, ModelConfig, PretrainConfig, dump_config, load_config
from blip.network import flops
from blip.network.flops import ImageTokens
from blip.network.vit import ViT, ViTConfig
from blip.tasks import image_tokens
from blip.tasks.pretrain import Pretraining
from blip.train.schedule import Epochs

FEWER = ["vit_patch=8", "image_sizes={0: 16, 1: 32}", "patch_dropout=0.5", "epochs=3", "max_steps=null"]


def watch(encoder: nn.Module) -> list[int]:
    """Fills a list with the tokens that the encoder's blocks get in each of its calls."""
    seen: list[int] = []
    encoder.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0].shape[1]))  # type: ignore
    return seen


def test_the_last_epochs_leave_out_nothing() -> None:
    epochs = Epochs(10, 2, 4)  # 5 steps an epoch, 20 in all
    config = ModelConfig(patch_dropout=0.25, epochs=4)
    shares = [image_tokens.dropped_share(config, step, epochs) for step in range(20)]
    assert shares == [0.25] * 15 + [0.0] * 5
    half = config.model_copy(update={"full_patches_epochs": 0.5})
    assert [image_tokens.dropped_share(half, step, epochs) for step in (17, 18)] == [0.25, 0.0]
    never = config.model_copy(update={"full_patches_epochs": 0.0})
    assert image_tokens.dropped_share(never, 19, epochs) == 0.25
    short = Epochs(10, 2, 4, max_steps=8)  # the run's last steps count
    assert [image_tokens.dropped_share(config, step, short) for step in (2, 3)] == [0.25, 0.0]


def test_tokens_that_a_step_sees() -> None:
    encoder, twin = (ViT(ViTConfig(32, 8, 24, 1, 3)) for _ in range(2))
    images = torch.zeros(2, 3, 16, 32)
    assert image_tokens.tokens_seen(encoder, twin, images) == ImageTokens(9, 9, 9)
    encoder.patch_dropout.share = 0.5
    assert image_tokens.tokens_seen(encoder, twin, images) == ImageTokens(9, 5, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["image_sizes={0: 112}"], "image_sizes ends with 112 and image_size is 224"),
        (["image_sizes={1: 112, 2: 224}"], r"epochs \[1, 2\]: the first of them is 0"),
        (["image_sizes={0: 112, 4: 224}", "epochs=4"], "last of the run's 4 epochs is 3"),
        (["image_sizes={0: 0, 4: 224}"], "sides in pixels"),
        (["image_sizes=[112, 224]"], "sizes by the epoch"),
        (["image_sizes={0:112,4:224}"], "a space after colons"),
        (["image_sizes={0: small, 4: 224}"], "image_sizes.0: .*integer"),
        (["patch_dropout=1"], "patch_dropout: .*less than 1"),
        (["patch_dropout=0.5", "epochs=2", "full_patches_epochs=2"], "patch_dropout 0.5 has no effect in 2 epochs"),
    ],
)
def test_options_that_cannot_be_used(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("vit: tiny\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "own.yaml", PretrainConfig, options)


def test_sizes_are_written_and_read_again(tmp_path: Path) -> None:
    config = PretrainConfig(image_sizes={12: 224, 0: 112, 4: 160})
    assert list(config.image_sizes) == [0, 4, 12]
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", PretrainConfig) == config


def test_a_size_that_is_no_multiple_of_the_patch_names_one_that_is(tiny_config: Path) -> None:
    config = load_config(tiny_config, PretrainConfig, ["image_sizes={0: 20, 3: 32}"])
    with pytest.raises(ConfigError, match=r"image_sizes: 20, .*no multiple of patch 16; try 16"):
        image_tokens.check_image_sizes(config, 16)
    with pytest.raises(ConfigError, match="no multiple of patch 16"):
        Pretraining(config, tiny_config.parent / "never", None, device=CPU)


def test_pretraining_sees_them_in_the_model_not_in_the_twin(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, PretrainConfig, [*FEWER, "accumulation=2"])  # 3 steps and 6 batches an epoch
    task = Pretraining(config, tmp_path, None, device=CPU)
    seen, twins = watch(task.model.image_encoder), watch(task.contrast.twin.image_encoder)
    batches, tokens = task.batches(0), []
    for step in range(9):
        for _ in range(2):
            batch = next(batches)
            out = task.step(batch, step)
            out.loss.backward()
            tokens.append(out.logs["image_tokens"])
            now = flops.ImageTokens(twins[-1], seen[-1], twins[-1])
            vit, text = task.model.image_encoder.config, task.model.text_encoder.config
            lengths, options = batch.lengths.tolist(), {"embed_dim": 16, "queue": 20}
            assert out.flops == flops.pretrain_step(vit, text, lengths, seen=now, **options).total
        task.after_update(step + 1)
    assert seen == [3] * 6 + [9] * 6 + [17] * 6
    assert twins == [5] * 6 + [17] * 12
    assert tokens == seen
    positions = task.model.image_encoder.positions
    assert positions.shape == (1, 17, 32) and positions.grad is not None


@pytest.mark.parametrize("task", TASKS)
def test_every_fine_tuning_task_sees_them(
    task: str, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(task, phantoms, tmp_path, *FEWER)  # 3 steps an epoch
    run = TASKS[task][2](config, None, tmp_path / "run", resume=None, device=CPU)
    seen, batches = watch(run.model.image_encoder), run.batches(0)
    for step in range(9):
        run.step(next(batches), step).loss.backward()
        run.after_update(step + 1)
    assert seen == [3] * 3 + [9] * 3 + [17] * 3


def test_evaluation_sees_every_patch_at_full_size(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, PretrainConfig, FEWER)
    task = Pretraining(config, tmp_path, None, device=CPU)
    next_step: Callable[[], Tensor] = lambda: task.step(next(batches), 0).loss  # noqa: E731
    batches = task.batches(0)
    next_step().backward()
    seen = watch(task.model.image_encoder)
    assert task.val is not None
    task.model.eval()
    task.model.image_encoder(next(iter(task.val)).images)
    assert seen == [17]
