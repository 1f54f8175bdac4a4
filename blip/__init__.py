"""BLIP for medical images: pre-training, fine-tuning, bootstrapping of captions, and reading the model's internals.

The public names are those of `blip.__all__`; each docstring has an example.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors, which complete and check by these lines
    from blip import runs as runs
    from blip.data.dataset import open_data as data  # the package `blip.data`, when it is called
    from blip.inference.inputs import Study
    from blip.inference.load import load
    from blip.interpret.attention_facts import attention_facts
    from blip.interpret.causes.ablation import ablate
    from blip.interpret.causes.attribution import attribute
    from blip.interpret.causes.labelled import Labelled
    from blip.interpret.causes.paths import path_patch
    from blip.interpret.causes.sweep import patch_sweep
    from blip.interpret.explain import explain_pairs
    from blip.interpret.features.contributions import contributions
    from blip.interpret.features.tuned_lens import tuned_lens
    from blip.interpret.lenses import attention_rollout, logit_lens, patch_lens
    from blip.interpret.maps import gradcam
    from blip.interpret.trace import names, patch_from, trace, zero_head
    from blip.runs.calls import evaluate, finetune, pretrain
    from blip.runs.run import Run

__version__ = "0.1.0"
__all__ = [
    "Labelled",
    "Run",
    "Study",
    "__version__",
    "ablate",
    "attention_facts",
    "attention_rollout",
    "attribute",
    "contributions",
    "data",
    "evaluate",
    "explain_pairs",
    "finetune",
    "gradcam",
    "load",
    "logit_lens",
    "names",
    "patch_from",
    "patch_lens",
    "patch_sweep",
    "path_patch",
    "pretrain",
    "trace",
    "tuned_lens",
    "zero_head",
]

MODULE_OF = {
    "data": "data",  # the package itself, which can be called
    "load": "inference.load",
    "Study": "inference.inputs",
    "finetune": "runs.calls",
    "pretrain": "runs.calls",
    "evaluate": "runs.calls",
    "Run": "runs.run",
    "trace": "interpret.trace",
    "names": "interpret.trace",
    "zero_head": "interpret.trace",
    "patch_from": "interpret.trace",
    "Labelled": "interpret.causes.labelled",
    "attribute": "interpret.causes.attribution",
    "patch_sweep": "interpret.causes.sweep",
    "path_patch": "interpret.causes.paths",
    "gradcam": "interpret.maps",
    "explain_pairs": "interpret.explain",
    "logit_lens": "interpret.lenses",
    "patch_lens": "interpret.lenses",
    "attention_rollout": "interpret.lenses",
    "attention_facts": "interpret.attention_facts",
    "ablate": "interpret.causes.ablation",
    "contributions": "interpret.features.contributions",
    "tuned_lens": "interpret.features.tuned_lens",
}


def __getattr__(name: str) -> Any:
    if name in MODULE_OF:  # imported on first use: `import blip` alone does not wait for torch
        module = import_module(f"blip.{MODULE_OF[name]}")
        return module if MODULE_OF[name] == name else getattr(module, name)
    if name == "runs":  # a room: `blip.runs.open`
        return import_module("blip.runs")
    raise AttributeError(f"module 'blip' has no attribute {name!r}")


def __dir__() -> list[str]:
    hidden = {name for name in globals() if name.startswith("__")}
    return sorted({*hidden, *__all__, "runs"})
