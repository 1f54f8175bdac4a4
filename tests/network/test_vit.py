"""The image encoder: its shortcuts equal the full computation, and other image sizes work."""

import pytest
import torch
from helpers.tiny import spread, tiny_vit
from torch.testing import assert_close

from blip.network.vit import DropPath, PatchDropout, ViT, kept_patches, resize_positions


def tiny(**changes: float) -> ViT:
    return spread(ViT(tiny_vit(**{"depth": 3, **changes})), std=0.3)


def test_cls_only_equals_full() -> None:
    model, images = tiny(), torch.randn(2, 3, 32, 32)
    alone, full = model(images, cls_only=True), model(images)
    assert full.shape == (2, 17, 24)
    assert alone.shape == (2, 1, 24)
    assert_close(alone, full[:, :1], rtol=1e-4, atol=1e-5)


def test_cls_only_gradients_equal_full() -> None:
    model, images = tiny(), torch.randn(2, 3, 32, 32)
    weight = torch.randn(2, 24)
    (model(images)[:, 0] * weight).sum().backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    (model(images, cls_only=True)[:, 0] * weight).sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, full[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("height", "width"), [(48, 48), (16, 16), (32, 48), (64, 16)])
def test_other_image_sizes(height: int, width: int) -> None:
    model = tiny().eval()
    states = model(torch.randn(1, 3, height, width))
    assert states.shape == (1, 1 + height * width // 64, 24)
    assert states.isfinite().all()


def test_as_many_patches_in_another_shape_are_resized() -> None:
    model, images, seen = tiny(), torch.randn(1, 3, 64, 16), []  # 8 x 2 patches, as many as 4 x 4
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    model(images)
    patches = model.patch_embed(images).flatten(2).transpose(1, 2)
    expected = torch.cat([model.cls_token, patches], dim=1) + resize_positions(model.positions, (8, 2))
    assert_close(seen[0], expected)


def test_positions_of_the_same_grid_stay() -> None:
    positions = torch.randn(1, 17, 24)
    assert_close(resize_positions(positions, (4, 4)), positions)


def test_resized_positions_keep_cls_and_follow_a_slope() -> None:
    row = torch.arange(4.0)
    grid = row[:, None].expand(4, 4).reshape(1, 16, 1)
    positions = torch.cat([torch.full((1, 1, 1), 9.0), grid], dim=1)
    resized = resize_positions(positions, (8, 8))
    assert resized[0, 0, 0] == 9.0
    down = resized[0, 1:, 0].view(8, 8)
    assert_close(down, down[:, :1].expand(8, 8))  # rows stay rows, columns columns
    assert (down[1:, 0] > down[:-1, 0]).all()


@pytest.mark.parametrize("changes", [{"image_size": 30}, {"heads": 5}])
def test_sizes_that_do_not_divide_are_an_error(changes: dict) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        ViT(tiny_vit(depth=1, **changes))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    layer, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = layer(x)
    values = y.flatten(1)
    assert ((values == 0).all(dim=1) | torch.isclose(values, torch.tensor(4 / 3)).all(dim=1)).all()
    assert abs((values[:, 0] == 0).float().mean().item() - 0.25) < 0.03
    assert abs(y.mean().item() - 1) < 0.05
    assert layer.eval()(x) is x


def test_drop_path_grows_with_depth() -> None:
    rates = [block.drop_path.rate for block in tiny(drop_path=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_drop_path_acts_in_training_alone() -> None:
    model, images = tiny(drop_path=0.5), torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


# ---- patches left out ------------------------------------------------------------------------------------------------


def dropping(share: float, **changes: float) -> ViT:
    model = tiny(**changes)
    model.patch_dropout.share = share
    return model


def one_by_one(model: ViT, images: torch.Tensor, kept: int) -> torch.Tensor:
    """The slow way: each image alone, its patches drawn as `PatchDropout` draws them and put side by side in a list."""
    drawn = torch.rand(len(images), model.positions.shape[1] - 1)
    states = []
    for image, numbers in zip(images, drawn, strict=True):
        embedded = model.patch_embed(image[None]).flatten(2).transpose(1, 2)[0]  # (16, D)
        tokens = [model.cls_token[0, 0] + model.positions[0, 0]]
        tokens += [embedded[i] + model.positions[0, 1 + i] for i in sorted(range(16), key=numbers.__getitem__)[:kept]]
        x = torch.stack(tokens)[None]
        for block in model.blocks:
            x = block(x)
        states.append(model.norm(x))
    return torch.cat(states)


@pytest.mark.parametrize(("share", "kept"), [(0.5, 8), (0.75, 4), (0.99, 1)])
def test_patches_left_out_equal_images_one_by_one(share: float, kept: int) -> None:
    model, images = dropping(share), torch.randn(3, 3, 32, 32)
    torch.manual_seed(5)
    states = model(images)
    torch.manual_seed(5)
    assert states.shape == (3, 1 + kept, 24)
    assert_close(states, one_by_one(model, images, kept), rtol=1e-4, atol=1e-5)
    torch.manual_seed(5)
    assert_close(model(images, cls_only=True), states[:, :1], rtol=1e-4, atol=1e-5)


def test_patches_left_out_get_no_gradient_and_others_do() -> None:
    model, images = dropping(0.5), torch.randn(2, 3, 32, 32, requires_grad=True)
    model(images).square().sum().backward()
    assert images.grad is not None
    patches = images.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum(dim=(1, 4, 5)).flatten(1)  # (2, 16)
    assert (patches > 0).sum(dim=1).tolist() == [8, 8]
    assert ((patches[0] > 0) != (patches[1] > 0)).any(), "each image has patches of its own"


def test_all_patches_are_seen_in_evaluation_and_without_a_share() -> None:
    images, state = torch.randn(2, 3, 32, 32), torch.get_rng_state()
    model = dropping(0.5).eval()
    torch.set_rng_state(state)
    assert model(images).shape == (2, 17, 24)
    model.patch_dropout.share = 0.0
    assert model.train()(images).shape == (2, 17, 24)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn where nothing is left out"


def test_every_patch_is_kept_equally_often() -> None:
    layer, x = PatchDropout(), torch.arange(10.0).view(1, 10, 1).expand(4000, 10, 1)
    layer.share = 2 / 3
    kept = layer(x)
    assert kept.shape == (4000, 4, 1) and (kept[:, 0] == 0).all()
    assert kept.sort(dim=1).values.diff(dim=1).min() > 0, "no patch twice"
    often = kept[:, 1:].flatten().long().bincount(minlength=10)[1:] / 4000
    assert_close(often, torch.full((9,), 1 / 3), rtol=0, atol=0.03)
    assert kept_patches(1, 0.9) == 1


def test_smaller_images_equal_a_model_whose_positions_were_interpolated_before() -> None:
    model, images = tiny(), torch.randn(2, 3, 16, 16)
    small = ViT(tiny_vit(depth=3, image_size=16))
    small.load_state_dict({**model.state_dict(), "positions": resize_positions(model.positions, (2, 2)).detach()})
    assert torch.equal(model(images), small(images))
    model(images).sum().backward()
    assert (model.positions.grad.abs().sum(dim=2) > 0).all(), "small images teach every position"
