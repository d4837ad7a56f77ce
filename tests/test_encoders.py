"""Every registered encoder keeps the contract; the new ones compute what they should."""

import copy
import math

import gin
import pytest
import torch
from test_models import our_name
from torch import nn

from misc import count_model_params
from selfstudy import configure, registry
from selfstudy.models.amdim_ref import AmdimEncoder
from selfstudy.models.heads import StandardisedConv2d
from selfstudy.models.resnet import DEEP, ResNet, init_resnet
from selfstudy.models.torchvision_zoo import NAMES, PREFIX, Torchvision, _as_map
from selfstudy.models.vit import ViT
from selfstudy.models.wrapper import Wrapper
from selfstudy.types import Batch, DataInfo
from util.errors import UserError

registry.discover()
OURS = [name for name in registry.names("encoder") if not name.startswith(PREFIX)]
DEEPEST = ("101", "152")  # only built: the same blocks, more of them
# One of each form of network, with the side that images need.
THEIRS = {
    "alexnet": 64, "convnext_tiny": 32, "googlenet": 32, "inception_v3": 75, "maxvit_t": 32,
    "regnet_y_400mf": 32, "shufflenet_v2_x0_5": 32, "vgg11": 32,
}  # fmt: skip
LAYERS = ["conv", "block1", "block2", "block3", "block4"]
INFO = DataInfo(
    3, 32, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {"train": 8}, {"class": 10, "pose": 5}
)


@pytest.fixture(autouse=True)
def small(narrow):
    gin.bind_parameter("AmdimEncoder.ndf", 8)
    gin.bind_parameter("AmdimEncoder.n_rkhs", 16)
    gin.bind_parameter("ViT.width", 24)


def images(count=4, size=32, channels=3):
    return torch.randn(count, channels, size, size)


def check(encoder, feats, count, layers=None):
    assert feats.pooled.shape == (count, encoder.out_feats)
    assert feats.dense.shape[:2] == (count, encoder.dense_feats) and feats.dense.ndim == 4
    assert set(feats.layers) <= set(LAYERS) and (layers or 1) <= len(feats.layers)
    assert list(feats.layers) == [name for name in LAYERS if name in feats.layers]
    assert all(item.ndim == 4 and len(item) == count for item in feats.layers.values())
    sides = [item.shape[2] for item in feats.layers.values()]
    assert sides == sorted(sides, reverse=True)


def widened(name):
    """Groups of four channels need a quarter of the width."""
    if name == "resnext50_32x4d":
        gin.bind_parameter("ResNet.width", 0.25)


@pytest.mark.parametrize(
    "name", [name for name in OURS if not any(depth in name for depth in DEEPEST)]
)
def test_every_encoder_of_ours_keeps_the_contract(name):
    widened(name)
    encoder = init_resnet(3, name)
    for size in (32, 64):
        feats = encoder.train()(images(size=size))
        check(encoder, feats, 4, layers=4)
    (feats.pooled.square().mean() + feats.dense.square().mean()).backward()
    grads = {key: item.grad for key, item in encoder.named_parameters()}
    assert all(item is not None and torch.isfinite(item).all() for item in grads.values())
    first = next(iter(grads))
    assert grads[first].any(), f"nothing reaches {first}"
    with torch.no_grad():
        encoder.eval()
        both = images()
        whole, half = encoder(both), encoder(both[:2])
        assert torch.allclose(whole.pooled[:2], half.pooled, atol=1e-4)
        again = init_resnet(3, name).eval()
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(again(both).pooled, whole.pooled)


@pytest.mark.parametrize("name", [*OURS, *(PREFIX + name for name in THEIRS)])
def test_every_encoder_is_built_without_memory(name):
    """As the rehearsal does before a run."""
    widened(name)
    with torch.device("meta"):
        encoder = init_resnet(3, name).train()
        feats = encoder(images(2, max(32, THEIRS.get(name.removeprefix(PREFIX), 0))))
    check(encoder, feats, 2)
    assert feats.pooled.is_meta and all(item.is_meta for item in encoder.state_dict().values())


@pytest.mark.parametrize(
    "name", ["ws_resnet18", "vit", "amdim_ref", "torchvision/squeezenet1_1"]
)
@pytest.mark.parametrize("dense", [False, True])
def test_a_method_runs_on_any_encoder(name, dense):
    gin.bind_parameter("init_resnet.choice", name)
    model = Wrapper(INFO, "rotate", [11, 1] if dense else None, dense_pred=dense)
    out = model.train()(Batch((images(),), {}, torch.arange(4)))
    assert out.selfsup["angle"].shape == (4, 4)
    out.selfsup["angle"].square().mean().backward()
    grads = [item.grad for item in model.backbone.encoder.parameters()]
    assert any(item is not None and item.any() for item in grads)
    assert all(item.grad is None for item in model.probes.parameters())


@pytest.mark.parametrize(("name", "component"), [
    ("resnet18", "ResNet"), ("ws_resnet50", "ResNet"), ("vit", "ViT"),
    ("amdim_ref", "AmdimEncoder"), ("torchvision/convnext_tiny", "Torchvision"),
])  # fmt: skip
def test_the_configuration_shows_the_encoder_that_is_built(name, component):
    needed = ("scheduler.milestones = [1]", "scheduler.target_lrs = [0, 1]")
    spec = configure.Spec(params=(f"init_resnet.choice = '{name}'", *needed))
    model = count_model_params.build(spec, count_model_params.CIFAR)
    assert any(part.startswith("backbone.encoder") for part, *_ in
               count_model_params.parts(model))  # fmt: skip
    parts = set(configure.would_build())
    assert parts & {"ResNet", "ViT", "AmdimEncoder", "Torchvision"} == {component}


@pytest.mark.parametrize(("given", "meant"), [
    ("resnet81", "resnet18"), ("ws_resnet81", "ws_resnet18"), ("vti", "vit"),
    ("torchvision/convnext_tinny", "torchvision/convnext_tiny"),
    ("torchvision/resnet181", "torchvision/resnet18"),
])  # fmt: skip
def test_a_misspelt_encoder_is_answered_with_the_nearest(given, meant):
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        configure.load(configure.Spec(params=(f"init_resnet.choice = '{given}'",)))


# ---- residual networks ----------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["ws_resnet18", "ws_resnet50"])
def test_standardised_networks_have_no_batch_norm_and_32_groups(choice):
    with torch.device("meta"):
        ours = ResNet(3, choice, width=1.0, out_feats=1000)
        plain = ResNet(3, choice.removeprefix("ws_"), width=1.0, out_feats=1000)
    modules = list(ours.modules())
    assert not [item for item in modules if isinstance(item, nn.BatchNorm2d)]
    convolutions = [item for item in modules if isinstance(item, nn.Conv2d)]
    assert all(type(item) is StandardisedConv2d for item in convolutions)
    assert {item.num_groups for item in modules if isinstance(item, nn.GroupNorm)} == {32}
    shapes = {name: item.shape for name, item in ours.named_parameters()}
    assert shapes == {name: item.shape for name, item in plain.named_parameters()}


def test_standardised_networks_ignore_scale_and_offset_of_weights():
    net, given = ResNet(3, "ws_resnet18").double(), images(size=64).double()
    with torch.no_grad():
        before = net(given).pooled
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(3).add_(0.1)
        assert torch.allclose(net(given).pooled, before, atol=1e-3)
        net.layers["conv"].conv1.weight[0, 0, 0, 0] += 1
        assert not torch.allclose(net(given).pooled, before, atol=1e-3)


def test_narrow_standardised_networks_have_two_channels_in_a_group():
    net = ResNet(3, "ws_resnet18", width=0.125)
    norms = [item for item in net.modules() if isinstance(item, nn.GroupNorm)]
    assert all(item.num_channels >= 2 * item.num_groups for item in norms)


@pytest.mark.parametrize("padding", [1, 2])
def test_the_small_stem_is_torchvisions_network_with_another_beginning(padding):
    import torchvision

    theirs = torchvision.models.resnet18(num_classes=7)
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    theirs.maxpool = nn.Identity()
    ours = ResNet(3, "resnet18", width=1.0, out_feats=7, small_stem=True, stem_padding=padding)
    ours.load_state_dict({our_name(name): item for name, item in theirs.state_dict().items()})
    given = images(2)
    with torch.no_grad():
        feats = ours.eval()(given)
        assert torch.allclose(feats.pooled, theirs.eval()(given), atol=1e-5)
    assert feats.layers["conv"].shape[2] == 30 + 2 * padding
    assert feats.layers["block4"].shape[2] == (4 if padding == 1 else 5)


def test_a_width_that_leaves_no_channels_is_refused():
    with pytest.raises(UserError, match="resnext50_32x4d needs at least 0.25, not 0.125"):
        ResNet(3, "resnext50_32x4d")


@pytest.mark.parametrize(("choice", "feats"), [("resnet50", 6144), ("resnet18", 1536)])
def test_three_times_the_width(choice, feats):
    with torch.device("meta"):
        net = ResNet(3, choice, width=3.0, out_feats=None)
        found = net(images(2, 64))
    assert net.out_feats == feats and found.pooled.shape == (2, feats)
    assert [item.shape[1] for item in found.layers.values()] == [
        192, *(feats // 8 * 2**index for index in range(4))]  # fmt: skip


# ---- vision transformer ---------------------------------------------------------------------


def _theirs(depth):
    """Torchvision's transformer, our own and the names of its weights in ours."""
    from torchvision.models import VisionTransformer

    theirs = VisionTransformer(image_size=32, patch_size=4, num_layers=depth, num_heads=3,
                               hidden_dim=24, mlp_dim=96)  # fmt: skip
    ours = ViT(3, depth=depth, heads=3)
    inner = {"ln_1": "norm1", "ln_2": "norm2", "self_attention.in_proj_": "qkv.",
             "self_attention.out_proj": "out", "mlp.3": "mlp.2"}  # fmt: skip
    outer = {"class_token": "token", "conv_proj": "embed", "encoder.pos_embedding": "position",
             "encoder.ln": "norm", "encoder.layers.encoder_layer_": "blocks."}  # fmt: skip
    state = {}
    for name, item in theirs.state_dict().items():
        for old, new in (outer | inner).items():
            name = name.replace(old, new) if old != "encoder.ln" or old in name else name
        state[name] = item
    ours.load_state_dict({key: item for key, item in state.items() if "heads" not in key})
    return ours.double(), theirs.double()


def test_vit_computes_what_torchvisions_does():
    ours, theirs = _theirs(depth=3)
    theirs.heads = nn.Identity()
    given = images(2).double()
    assert torch.allclose(ours(given).pooled, theirs(given), atol=1e-10)


def test_vit_keeps_maps_after_each_quarter():
    net, kept = ViT(3, depth=6).eval(), []
    for block in net.blocks:
        block.register_forward_hook(lambda module, given, out: kept.append(out))
    feats = net(images(2))
    for name, number in zip(LAYERS[1:], (2, 3, 5, 6), strict=True):
        tokens = feats.layers[name].flatten(2).transpose(1, 2)
        assert torch.equal(tokens, kept[number - 1][:, 1:])
    assert torch.allclose(net.norm(kept[-1])[:, 1:].transpose(1, 2), feats.dense.flatten(2))
    assert list(ViT(3, depth=1)(images(1)).layers) == LAYERS


def test_vit_positions_follow_other_sizes():
    net = ViT(3, width=6)
    with torch.no_grad():
        ramp = torch.arange(8.0)[:, None, None] * torch.tensor([1.0, 0, 0, 0, 0, 0])
        net.position[:, 1:] = ramp.expand(8, 8, 6).reshape(1, 64, 6)  # rises downward
        net.position[:, 0] = 7
        found = net._positions(16, 4)
    assert found.shape == (1, 65, 6) and (found[:, 0] == 7).all()
    grid = found[0, 1:].view(16, 4, 6)
    assert (grid[:, :, 0].diff(dim=0) > 0).all() and (grid[:, :, 1:] == 0).all()
    assert torch.allclose(grid[:, :1].expand_as(grid), grid)  # equal along each row
    assert torch.allclose(grid[8, 0, 0] + grid[7, 0, 0], torch.tensor(7.0), atol=1e-5)
    assert net._positions(8, 8) is net.position


def test_vit_refuses_what_it_cannot_cut():
    with pytest.raises(UserError, match="does not divide images of 30 x 30"):
        ViT(3)(images(1, 30))
    with pytest.raises(UserError, match="that the heads can share"):
        ViT(3, width=16, heads=3)


# ---- AMDIM's encoder ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 128])
def test_amdims_encoder_has_its_maps(size):
    with torch.device("meta"):
        net = AmdimEncoder(3, size=size, ndf=64, n_rkhs=512)
        feats = net(images(2, size))
    assert [item.shape[2] for item in feats.layers.values()][1:] == [14, 7, 5, 1]
    assert feats.pooled.shape == (2, 512) and feats.dense.shape == (2, 512, 1, 1)
    with pytest.raises(UserError, match="needs images of as many pixels"):
        net(images(2, size - 4))


def test_amdims_maps_stay_local():
    net, given = AmdimEncoder(3).eval(), images(1).requires_grad_()
    net(given).layers["block2"][0, :, 0, 0].sum().backward()
    reached = given.grad[0].abs().sum(0) > 0
    assert reached[:12, :12].any() and not reached[16:].any() and not reached[:, 16:].any()


def test_amdims_blocks_begin_as_their_averaged_input():
    net = AmdimEncoder(3, n_depth=2)
    feats = net(images(2))
    before, after = feats.layers["block2"], feats.layers["block3"]
    assert torch.allclose(after, nn.functional.avg_pool2d(before, 3, 1), atol=1e-6)
    assert before[:, 16:].abs().max() == 0 and before[:, :8].abs().max() > 0
    for depth, units in ((1, 4), (3, 3 * 4)):
        found = [item for item in AmdimEncoder(3, n_depth=depth).modules()
                 if type(item).__name__ == "_Residual"]  # fmt: skip
        assert len(found) == 1 + units


# ---- torchvision's networks -----------------------------------------------------------------


def test_the_names_are_torchvisions():
    import torchvision

    assert NAMES == torchvision.models.list_models(module=torchvision.models)
    assert set(DEEP) <= set(NAMES)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvisions_networks_lack_their_last_layer_only(name):
    import torchvision

    theirs = torchvision.models.get_model(name, num_classes=1000).eval()
    ours = Torchvision(3, PREFIX + name).eval()
    missing = ours.net.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == [] and len(missing.unexpected_keys) == 2
    last = theirs.get_submodule(missing.unexpected_keys[0].rpartition(".")[0])
    with torch.no_grad():
        given = images(2, 64)
        feats = ours(given)
        seen = []
        last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        theirs(given)
    expected = seen[0] if seen[0].ndim == 2 else seen[0].mean((2, 3))
    assert torch.allclose(feats.pooled, expected, atol=1e-5)


def test_torchvisions_maps_are_those_of_our_own_network():
    theirs = Torchvision(3, PREFIX + "resnet18").eval()
    ours = ResNet(3, "resnet18", width=1.0, out_feats=None).eval()
    names = list(ours.state_dict())
    ours.load_state_dict(dict(zip(names, theirs.state_dict().values(), strict=True)))
    with torch.no_grad():
        given = images(2, 64)
        a, b = ours(given), theirs(given)
    assert torch.allclose(a.pooled, b.pooled, atol=1e-5) and torch.equal(a.dense, b.dense)
    assert all(torch.equal(a.layers[name], b.layers[name]) for name in LAYERS[1:])
    assert b.layers["conv"].shape == (2, 64, 32, 32)  # before pooling


def test_channels_come_second_also_from_networks_that_have_them_last():
    with torch.device("meta"):
        swin = Torchvision(3, PREFIX + "swin_t")
        shapes = {name: tuple(item.shape[1:]) for name, item in
                  swin(images(2, 64)).layers.items()}  # fmt: skip
        vit = Torchvision(3, PREFIX + "vit_b_32", input_res=96)(images(2))
    assert shapes == {"block1": (96, 16, 16), "block2": (192, 8, 8), "block3": (384, 4, 4),
                      "block4": (768, 2, 2)}  # fmt: skip
    assert vit.dense.shape == (2, 768, 3, 3) and list(vit.layers) == LAYERS
    cells = torch.randn(2, 5, 3, 3)
    tokens = torch.cat([torch.zeros(2, 1, 5), cells.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(_as_map(tokens, "tokens"), cells)
    assert torch.equal(_as_map(cells.permute(0, 2, 3, 1), "nhwc"), cells)


def test_a_copy_of_a_torchvision_network_keeps_its_own_maps():
    """Teachers are such copies."""
    first = Torchvision(3, PREFIX + "squeezenet1_1").eval()
    second = copy.deepcopy(first)
    with torch.no_grad():
        given = images(2)
        a = second(given)
        assert first.kept == {} and torch.equal(first(given).dense, a.dense)
        second.net.features[0].weight.zero_()
        second.net.features[0].bias.zero_()
        assert not torch.equal(first(given).dense, second(given).dense)


def test_other_channels_and_sizes_of_torchvisions_networks():
    two = Torchvision(2, PREFIX + "squeezenet1_1", input_res=64)
    small, large = two(images(2, 16, channels=2)), two(images(2, 64, channels=2))
    assert small.dense.shape == large.dense.shape and two.net.features[0].in_channels == 2
    std = two.net.features[0].weight.std().item()
    assert math.isclose(std, math.sqrt(2 / (64 * 9)), rel_tol=0.2)
    with pytest.raises(UserError, match="Torchvision.input_res = 50"):
        Torchvision(3, PREFIX + "vit_b_32", input_res=50)
