"""The image encoder: a Vision Transformer (Dosovitskiy et al. 2021), as BLIP uses it.

Shapes: B images, h x w patches, N = 1 + h*w tokens (CLS first), D width, H heads, d head width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from blip.errors import InputError
from blip.network.attention import Attention
from blip.network.picture_embeddings import PictureEmbeddings


@dataclass
class ViTConfig:
    """Sizes and form of the image encoder. The defaults of the form are those of BLIP; others are for foreign towers.

    Args:
        image_size, patch: sides in pixels.
        mlp_ratio: the hidden width of an MLP over `width`; see `hidden`.
        drop_path: the last block's rate.
        norm_eps, block_eps: epsilons of the final norm, and of the norms before it.
        pre_norm: there is a norm before the first block, as in CLIP.
        activation: of the MLPs; `quick_gelu` is CLIP's, x * sigmoid(1.702 x).
        patch_bias: the patch embedding has a bias.
        picture_embeddings: by what the pictures of an item are told apart, see `PictureEmbeddings`.
        max_pictures: of an item that are told apart; 0 without `picture_embeddings`.
    """

    image_size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4
    drop_path: float = 0.0
    norm_eps: float = 1e-6
    block_eps: float = 1e-6
    pre_norm: bool = False
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    patch_bias: bool = True
    picture_embeddings: Literal["none", "place", "time"] = "none"
    max_pictures: int = 0

    @property
    def hidden(self) -> int:
        """The hidden width of an MLP."""
        return round(self.width * self.mlp_ratio)


VIT_SIZES = {  # width, depth, heads, patch
    "tiny": (192, 6, 3, 16),
    "small": (384, 12, 6, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
    "eva_g": (1408, 39, 16, 14),
    "clip_l14": (1024, 23, 16, 14),
}
# what the towers of BLIP-2 have besides their sizes: EVA ViT-g/14 and CLIP ViT-L/14, both without their last block
VIT_FORMS: dict[str, dict[str, Any]] = {
    "eva_g": {"mlp_ratio": 4.3637, "norm_eps": 1e-5},  # the final norm is BLIP-2's own, with torch's epsilon
    "clip_l14": {
        "norm_eps": 1e-5,
        "block_eps": 1e-5,
        "pre_norm": True,
        "activation": "quick_gelu",
        "patch_bias": False,
    },
}
TABLE = "picture_embeddings.table"  # its name among the tensors of an image encoder
FORM = (  # what is no size
    "mlp_ratio", "norm_eps", "block_eps", "pre_norm", "activation", "patch_bias", "picture_embeddings", "max_pictures",
)  # fmt: skip


def named_vit(name: str, image_size: int) -> ViTConfig:
    """The configuration of a name of `VIT_SIZES`."""
    width, depth, heads, patch = VIT_SIZES[name]
    return ViTConfig(image_size, patch, width, depth, heads, **VIT_FORMS.get(name, {}))


def form_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The form that `model.json` gives of an image encoder; files of earlier versions give `mlp_ratio` alone."""
    return {name: stored[name] for name in FORM if name in stored}


class ViT(nn.Module):
    """Patches of an image in, states of all tokens out."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        if (config.picture_embeddings == "none") != (config.max_pictures == 0):
            raise InputError("picture_embeddings need max_pictures of an item, and max_pictures belong to them alone")
        if config.image_size % config.patch or config.width % config.heads:
            raise InputError(
                f"image size {config.image_size} must be a multiple of patch {config.patch}, "
                f"and width {config.width} of heads {config.heads}"
            )
        self.config = config
        grid = config.image_size // config.patch
        self.patch_dropout = PatchDropout()
        self.patch_embed = nn.Conv2d(
            3, config.width, kernel_size=config.patch, stride=config.patch, bias=config.patch_bias
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + grid * grid, config.width))
        self.first_norm = nn.LayerNorm(config.width, eps=config.block_eps) if config.pre_norm else nn.Identity()
        # stochastic depth grows linearly from 0 at the first block to `drop_path` at the last
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()  # the model may be on "meta"
        self.blocks = nn.ModuleList([Block(config, rate) for rate in rates])
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.picture_embeddings = (
            None
            if config.picture_embeddings == "none"
            else PictureEmbeddings(config.picture_embeddings, config.max_pictures, config.width)
        )
        # 0.02 at width 768; narrower models start larger, as in `med.py`
        std = 0.02 * (768 / config.width) ** 0.5
        self.apply(partial(_init_weights, std=std))
        nn.init.trunc_normal_(self.cls_token, std=std)
        nn.init.trunc_normal_(self.positions, std=std)

    def forward(self, images: Tensor, cls_only: bool = False, places: Tensor | None = None) -> Tensor:
        """images (B, 3, h*patch, w*patch) -> states (B, N, D), or (B, 1, D) with `cls_only`.

        `places` (B,) are those of `PictureEmbeddings`; without them, each image is the only picture of its item.
        `cls_only` computes the last block for the CLS token alone: contrast needs no other. Images of another size than
        the configuration's get interpolated positions, and a training step may leave patches out (`PatchDropout`).
        """
        x = self.patch_embed(images)
        h, w = x.shape[-2:]
        x = rearrange(x, "b d h w -> b (h w) d")
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, N, D)
        positions: Tensor = self.positions
        if positions.shape[1] != x.shape[1] or h != w:
            positions = resize_positions(positions, (h, w))
        # autocast leaves the convolution's output in bf16 and this parameter in float32: the residual stream is float32
        x = self.first_norm(self.patch_dropout(x + positions))
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.norm(self.blocks[-1](x, cls_only))
        return x if self.picture_embeddings is None else self.picture_embeddings(x, places)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ViTConfig, drop_path: float):
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width, eps=config.block_eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention = Attention()
        self.proj = nn.Linear(config.width, config.width)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(config.width, eps=config.block_eps)
        self.mlp = MLP(config.width, config.hidden, config.activation)

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D); with `cls_only` every token is a key, but only CLS comes out: (B, 1, D)."""
        y = self.norm1(x)
        if cls_only:
            width = x.shape[-1]
            q = _outputs(self.qkv, y[:, :1], slice(0, width))
            k, v = _outputs(self.qkv, y, slice(width, None)).chunk(2, dim=-1)
            x = x[:, :1]
        else:
            q, k, v = self.qkv(y).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (q, k, v))
        z = rearrange(self.attention(q, k, v), "b h n d -> b n (h d)")
        x = x + self.drop_path(self.proj(z))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _outputs(linear: nn.Linear, x: Tensor, which: slice) -> Tensor:
    """`linear(x)[..., which]`, where a plain linear layer computes no other outputs.

    A layer that something wraps, such as an adapter, is called whole: it computes more than its weight does.
    """
    if type(linear) is nn.Linear:
        return F.linear(x, linear.weight[which], linear.bias[which])
    return linear(x)[..., which]


class MLP(nn.Sequential):
    """Two linear layers with GELU (erf) between them, or CLIP's approximation of it."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu"):
        between = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        super().__init__(nn.Linear(width, hidden), between, nn.Linear(hidden, width))


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the whole residual branch of a sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1 - self.rate
        kept = torch.rand(len(x), 1, 1, device=x.device) < keep  # (B, 1, 1)
        return x * kept / keep


class PatchDropout(nn.Module):
    """Leaves out a random `share` of each image's patches in training (FLIP, Li et al. 2023); CLS always stays.

    The share is 0 until a task sets it for a step. All that follows then sees 1 + `kept_patches` tokens, in an order
    that means nothing: the positions are added before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.share = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, 1 + kept patches, D)."""
        if not self.training or self.share == 0.0:
            return x
        count, tokens, width = x.shape
        kept = kept_patches(tokens - 1, self.share)
        order = torch.rand(count, tokens - 1, device=x.device).argsort(dim=1)[:, :kept]  # (B, kept)
        first = tokens * torch.arange(count, device=x.device)[:, None]  # each image's CLS among all B*N tokens
        places = torch.cat([first, first + 1 + order], dim=1).flatten()
        # tokens are copied whole, and each gets one gradient at most, so that the order of adding does not matter
        return x.flatten(0, 1).index_select(0, places).view(count, 1 + kept, width)


def kept_patches(patches: int, share: float) -> int:
    """How many of an image's patches `PatchDropout` keeps."""
    return max(1, round((1 - share) * patches))


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Learned positions for another grid of patches, bicubic: (1, 1+n*n, D) -> (1, 1+h*w, D). CLS keeps its own."""
    side = int((positions.shape[1] - 1) ** 0.5)
    cls, patches = positions[:, :1], positions[:, 1:]
    patches = rearrange(patches, "1 (h w) d -> 1 d h w", h=side)
    patches = F.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False)
    patches = rearrange(patches, "1 d h w -> 1 (h w) d").to(positions.dtype)
    return torch.cat([cls, patches], dim=1)


def fit_image_size(tensors: dict[str, Tensor], config: ViTConfig, prefix: str = "image_encoder.") -> None:
    """Interpolates the positions in `tensors` to the image size of `config`, in place of the old ones; and embeddings
    of pictures become as many as `config` has, where new ones are zero.

    Positions that are absent, or of another width, stay as they are: loading them fails with a message.
    """
    positions = tensors.get(prefix + "positions")
    if positions is None or positions.shape[2] != config.width:
        return
    side = config.image_size // config.patch
    if positions.shape[1] != 1 + side * side:
        tensors[prefix + "positions"] = resize_positions(positions, (side, side))
    table = tensors.pop(prefix + TABLE, positions.new_zeros(0, config.width))
    if config.picture_embeddings != "none":
        tensors[prefix + TABLE] = F.pad(table, (0, 0, 0, config.max_pictures - len(table)))  # or cut


def _init_weights(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        nn.init.zeros_(module.bias)
