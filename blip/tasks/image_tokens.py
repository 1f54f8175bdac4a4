"""Fewer image tokens in training: images that begin small (`image_sizes`), and patches left out (`patch_dropout`).

The size of an image depends on the epoch alone, and patches are drawn from torch's generator, whose state a checkpoint
holds: a run that is resumed goes on bit for bit.
"""

from torch import Tensor

from blip.config import ConfigError, ModelConfig
from blip.network.flops import ImageTokens
from blip.network.pictures import Pictures
from blip.network.vit import ViT, kept_patches
from blip.train.schedule import Epochs


def check_image_sizes(config: ModelConfig, patch: int) -> None:
    """ConfigError where a size of `image_sizes` is no multiple of the patch."""
    for epoch, size in config.image_sizes.items():
        if size % patch:
            near = max(1, round(size / patch)) * patch
            raise ConfigError(
                f"image_sizes: {size}, from epoch {epoch} on, is no multiple of patch {patch}; try {near}"
            )


def dropped_share(config: ModelConfig, step: int, epochs: Epochs) -> float:
    """The share of patches that optimizer step `step`, counted from 0, leaves out."""
    whole = round(config.full_patches_epochs * epochs.steps)  # steps at the end of the run
    return config.patch_dropout if step < epochs.total_steps - whole else 0.0


def tokens_seen(encoder: ViT, twin: ViT, images: Tensor | Pictures) -> ImageTokens:
    """The tokens of each of `images` (B, 3, h*patch, w*patch) in a training step, in the encoder and in its twin."""
    pictures = float(images.counts.float().mean()) if isinstance(images, Pictures) else 1.0
    side = encoder.config.patch
    patches = (images.shape[-2] // side) * (images.shape[-1] // side)
    kept, twins = (kept_patches(patches, one.patch_dropout.share) for one in (encoder, twin))
    return ImageTokens(1 + patches, 1 + kept, 1 + twins, pictures)
