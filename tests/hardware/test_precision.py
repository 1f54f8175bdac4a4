"""Each precision chooses what it says on each device, sets torch for the time of its block alone, and trains."""

import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from blip.config import PretrainConfig, load_config
from blip.errors import InputError
from blip.hardware import precision
from blip.hardware.precision import choose_precision, computing, products, tf32, without_effect
from blip.tasks.pretrain import Pretraining, run

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9 or above


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """That of a GPU which is not there: 8.0 at first; a test may change it."""
    level = [8, 0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: tuple(level))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: level >= [8, 0])
    return level


def of_gpu() -> tuple[bool, bool]:
    """Whether products and convolutions are computed in TF32, by the settings that a GPU reads."""
    if NEWER:
        by_kind = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
        assert by_kind == tuple("tf32" if on else mode for on, mode in zip(legacy(), by_kind, strict=True))
    return legacy()


def legacy() -> tuple[bool, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.get_float32_matmul_precision() == "high", torch.backends.cudnn.allow_tf32


def everything() -> list[object]:
    """All settings, of the CPU too."""
    backends = torch.backends
    newer = (backends.mkldnn.matmul, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn) if NEWER else ()
    return [*legacy(), *(one.fp32_precision for one in newer)]


def test_what_auto_means(capability: list[int]) -> None:
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("auto", GPU) == "bf16"
    capability[:] = [7, 5]
    assert choose_precision("auto", GPU) == "fp32"
    for named in ("fp32", "tf32"):
        assert choose_precision(named, GPU) == named
    for named in ("fp32", "tf32", "bf16"):
        assert choose_precision(named, CPU) == named


def test_what_cannot_be_chosen(capability: list[int], tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision is 'fp16'; it can be fp32, tf32, bf16 or auto"):
        choose_precision("fp16", CPU)
    capability[:] = [7, 5]
    refused = r"bf16 needs a GPU of compute capability 8.0 or above, and Tesla T4 .*: set precision to fp32"
    for enter in (products, computing):
        with pytest.raises(InputError, match=refused), enter(GPU, "bf16"):
            pass
    config = load_config(tiny_config, PretrainConfig, ["precision=bf16", "train_file=[absent.json]"])
    with pytest.raises(InputError, match=refused):  # and not that the file is absent, which is found later
        Pretraining(config, tmp_path, None, device=GPU)


def test_where_tf32_has_no_effect(capability: list[int]) -> None:
    assert "precision tf32 computes as fp32 on cpu" in without_effect("tf32", CPU)
    assert without_effect("tf32", GPU) == without_effect("fp32", CPU) == without_effect("bf16", CPU) == ""
    capability[:] = [7, 5]
    assert "precision tf32 computes as fp32 on cuda:0" in without_effect("tf32", GPU)


@pytest.mark.parametrize(("named", "expected"), [("fp32", False), ("tf32", True), ("bf16", False), ("auto", False)])
def test_a_block_sets_both_and_restores_them(capability: list[int], named: str, expected: bool) -> None:
    before = everything()
    for other in (True, False):
        with tf32(other):  # what a notebook has set
            its_own = everything()
            with pytest.raises(KeyError), products(GPU, named):
                assert of_gpu() == (expected, expected)
                if NEWER:
                    assert torch.backends.mkldnn.matmul.fp32_precision == before[2]  # a CPU's products stay as they are
                raise KeyError
            assert everything() == its_own
    assert everything() == before


def test_a_cpu_changes_no_setting() -> None:
    before = everything()
    for named in precision.PRECISIONS:
        with products(CPU, named), computing(CPU, named):
            assert everything() == before


@pytest.mark.skipif(not NEWER, reason="torch has one setting")
def test_settings_that_torch_itself_refuses_to_read_are_restored() -> None:
    """Where the newer setting alone was set, torch's older functions raise."""
    matmul = torch.backends.cuda.matmul
    before = everything()
    matmul.fp32_precision = "tf32"
    try:
        with tf32(False):
            assert of_gpu() == (False, False)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before[3]
    assert everything() == before


def test_no_warning_of_torch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.set_warn_always(True)
        try:
            with tf32(True), tf32(False):
                pass
        finally:
            torch.set_warn_always(False)


def test_forwards_in_bf16_only_where_it_is_asked_for() -> None:
    x = torch.ones(2, 2)
    for named in (*precision.PRECISIONS, precision.AUTO):
        with computing(CPU, named):
            assert (x @ x).dtype == (torch.bfloat16 if named == "bf16" else torch.float32)


def test_a_run_with_tf32(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On a CPU it is a run in fp32, which the log says; its whole step lies within the settings."""
    entered: list[str] = []

    @contextmanager
    def noted(device: torch.device, named: str):  # type: ignore[no-untyped-def]
        entered.append(named)
        yield
        entered.append("left")

    monkeypatch.setattr("blip.train.run.products", noted)
    monkeypatch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)
    step = Pretraining.step
    monkeypatch.setattr(Pretraining, "step", lambda *a, **k: entered.append("step") or step(*a, **k))
    losses = []
    for named in ("fp32", "tf32"):
        config = load_config(tiny_config, PretrainConfig, ["val_file=[]", "max_steps=1", f"precision={named}"])
        assert run(config, tmp_path / named, "", device=CPU)
        losses.append((tmp_path / named / "metrics.jsonl").read_text().split('"loss"')[1].split(",")[0])
    assert entered == ["fp32", "step", "left", "tf32", "step", "left"]
    assert losses[0] == losses[1]
    assert "precision tf32 computes as fp32 on cpu" in capsys.readouterr().err
