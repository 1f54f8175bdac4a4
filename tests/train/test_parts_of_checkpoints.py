"""Parts of a training state that processes write, and options that exclude weights that are divided."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fake_group import fake_group
from helpers.sharded_training import needs_sums
from helpers.tiny import tiny_model
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule

from blip.checkpoints.format import CheckpointError
from blip.config import PretrainConfig
from blip.models.momentum import TEMPERATURE_RANGE, Entries, Queue, Twin
from blip.tasks.config import LoraConfig, RetrievalConfig
from blip.tasks.contrast import MomentumContrast
from blip.train.parallel import OptionError
from blip.train.parts import add_parts, split, take_parts
from blip.train.sharding import Sharded, in_parallel, is_sharded

CPU = torch.device("cpu")


def write(folder: Path, count: int, rows: list[int]) -> None:
    """Parts of so many rows each, numbered from 0 on."""
    first = 0
    for rank, number in enumerate(rows):
        tensor = torch.arange(first, first + number).float()[:, None].expand(-1, 3).contiguous()
        first += number
        name = f"training-{rank:05d}-of-{count:05d}.safetensors"
        save_file({"twin/a.weight": tensor, "optimizer/state/12/exp_avg": -tensor}, folder / name)


def test_parts_are_whole_tensors_again(tmp_path: Path) -> None:
    write(tmp_path, 4, [2, 2, 1, 0])
    state: dict[str, Any] = {"optimizer": {"state": {12: {"step": torch.tensor(3.0)}}}}
    add_parts(state, tmp_path)
    whole = torch.arange(5).float()[:, None].expand(-1, 3)
    assert torch.equal(state["twin"]["a.weight"], whole)
    assert torch.equal(state["optimizer"]["state"][12]["exp_avg"], -whole)
    assert state["optimizer"]["state"][12]["step"] == 3


def test_a_folder_without_parts_adds_nothing(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    add_parts(state, tmp_path)
    assert state == {}


def test_a_missing_part_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 3, [2, 2])
    with pytest.raises(CheckpointError, match="has 2 parts of 3: continue from another checkpoint"):
        add_parts({}, tmp_path)


def test_a_part_of_another_checkpoint_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 2, [2, 2])
    save_file({"twin/b": torch.ones(1)}, tmp_path / "training-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors is of another checkpoint"):
        add_parts({}, tmp_path)


def test_a_damaged_part_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 2, [2, 2])
    (tmp_path / "training-00001-of-00002.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        add_parts({}, tmp_path)
    write(tmp_path, 2, [2, 2])
    save_file({"twin/a.weight": torch.tensor([float("nan")])}, tmp_path / "training-00000-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="infinite or not a number"):
        add_parts({}, tmp_path)


def test_machines_without_a_common_folder_are_told(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    write(source, 4, [2])
    with fake_group(4), pytest.raises(CheckpointError, match=r"lacks 3 of 4 parts.*same --output_dir"):
        take_parts(source, target)


@needs_sums
def test_a_state_is_split_by_what_is_divided() -> None:
    with fake_group(2):
        model = tiny_model("pretrain")
        Sharded(model, CPU)
        state = {"twin": dict(model.named_parameters()), "step": 3}
        rest, own = split(state)
    assert list(rest["twin"]) == ["temperature"] and rest["step"] == 3
    assert len(own) == len(state["twin"]) - 1 and "twin/image_proj.weight" in own
    assert own["twin/image_proj.weight"].shape == (4, 24)


def config(**more: Any) -> PretrainConfig:
    return PretrainConfig(parallel="fsdp", **more)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True}, "compile.*compile: false"),
        ({"activation_checkpointing": "fairscale"}, "activation_checkpointing: fairscale; use .*: torch"),
        ({"gradient_compression": "bf16"}, "gradient_compression; set gradient_compression: none"),
    ],
)
def test_options_that_it_excludes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"parallel: fsdp cannot be combined with {message}"):
        is_sharded(config(**options))


def test_adapters_are_excluded() -> None:
    given = RetrievalConfig(parallel="fsdp", lora=LoraConfig(targets=["q"]), init_from="x")
    with pytest.raises(OptionError, match=r"lora.*use parallel: ddp"):
        is_sharded(given)


def test_an_older_torch_cannot_do_it_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FSDPModule, "set_force_sum_reduction_for_comms", raising=False)
    with fake_group(2), pytest.raises(OptionError, match=r"parallel: fsdp without GPUs needs torch 2.8, this is \d"):
        in_parallel(nn.Linear(2, 2), config(), CPU)


@needs_sums
def test_the_temperature_stays_in_its_range() -> None:
    """Every process keeps it whole; an update clamps what the optimizer has."""
    model, given = tiny_model("pretrain"), config(embed_dim=8, queue_size=8)
    with fake_group(2):
        contrast = MomentumContrast(
            model, Twin(model), Queue(8, 8), config=given, equal_captions=True, equal_images=True
        )
        contrast.shard(CPU)
        parallel = in_parallel(model, given, CPU)
        ids = torch.arange(2)
        for outside, end in zip((-1.0, 9.0), TEMPERATURE_RANGE, strict=True):
            own = parallel.own(model.temperature)
            own.data.fill_(outside)
            contrast.pending = [Entries(torch.randn(2, 8), torch.randn(2, 8), ids, ids)]
            contrast.after_update()
            assert own.item() == model.temperature.item() == pytest.approx(end)


def test_one_process_divides_nothing() -> None:
    model = nn.Linear(2, 2)
    assert in_parallel(model, config(), CPU) is model


def test_ddp_is_the_default() -> None:
    with fake_group(2):
        assert not is_sharded(PretrainConfig())
        assert is_sharded(config())
