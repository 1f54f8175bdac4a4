"""The options that give the sizes of a model, and a configuration with the sizes of a checkpoint."""

from typing import Any, TypeVar

from blip.config import ConfigError, ModelConfig
from blip.network.vit import VIT_SIZES

Run = TypeVar("Run", bound=ModelConfig)
# configuration key -> the size that it gives; `vit: custom` goes with the first three
VIT_KEYS = {"vit_width": "width", "vit_depth": "depth", "vit_heads": "heads", "vit_patch": "patch"}
TEXT_KEYS = {
    "text_width": "width",
    "text_layers": "layers",
    "text_heads": "heads",
    "text_hidden": "hidden",
    "max_positions": "max_positions",
}


def with_sizes(config: Run, sizes: dict[str, Any], path: str) -> Run:
    """The configuration with the sizes of the checkpoint of this path, by option.

    Raises:
        ConfigError: the configuration asks for others.
    """
    asked = {key: getattr(config, key) for key in sizes if key in config.model_fields_set}
    other = [f"{key} {value} (it has {sizes[key]})" for key, value in asked.items() if value not in (None, sizes[key])]
    if "vit" in config.model_fields_set and config.vit != "custom":
        own = tuple(sizes[key] for key in VIT_KEYS)
        other += [f"vit {config.vit} (it has {own})"] if VIT_SIZES[config.vit] != own else []
    if other:
        raise ConfigError(f"{path} has sizes of its own: leave out {', '.join(other)}")
    return config.model_copy(update={"vit": "custom", **sizes})
