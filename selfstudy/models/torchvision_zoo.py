"""The classification networks of torchvision as encoders."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfstudy.models.encoder import ImageEncoder
from selfstudy.registry import configurable, register
from selfstudy.types import Features
from util.errors import UserError

# Listed here so that a misspelt name is refused without importing torchvision (2 s).
NAMES = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l
efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75
mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf
regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d
resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s
swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32
vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
""".split()
PREFIX = "torchvision/"
CLASSES = 1000  # outputs of every classifier's last layer, which is identified by them
LABELS = ("conv", "block1", "block2", "block3", "block4")
SIZES = (224, 320)  # pixels: the axes that differ between the two are height and width
ONE_SIZE = {"vit": "image_size", "maxvit": "input_size"}  # family -> its argument for it

Layout = str  # 'nchw', 'nhwc' or 'tokens': [B, 1 + hw, D]


class _Tap:
    """Forward hook that stores a module's output; an object, since deepcopy shares closures."""

    def __init__(self, kept: dict[str, Tensor], label: str):
        self.kept = kept
        self.label = label

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(output, Tensor):
            self.kept[self.label] = output


@configurable(denylist=["in_channels", "choice"])
class Torchvision(ImageEncoder):
    """A torchvision network with random weights, without its classifier's last layer.

    The dense map is the last one before pooling, or the patch tokens. 'block4' ... 'block1' and
    'conv' are the last maps of each resolution, deepest first, as many as there are; in a
    vision transformer they are the maps after each quarter of the depth and the embedded
    patches.

    Args:
        in_channels: C of the images.
        choice: 'torchvision/' and its name.
        input_res: side in pixels to which images are resized, for networks that refuse small
            ones; None does not resize, except to 224 for the networks of one fixed size
            ('vit_...' and 'maxvit_t').
    """

    def __init__(self, in_channels: int, choice: str, input_res: int | None = None):
        super().__init__()
        name = choice.removeprefix(PREFIX)
        one_size = name.partition("_")[0] in ONE_SIZE
        res = input_res or SIZES[0]
        self.input_res = res if input_res or one_size else None
        self.net, self.out_feats = _network(name, in_channels, self.input_res)
        with torch.device("meta"):  # a copy without memory, to trace shapes
            twin = _network(name, in_channels, self.input_res)[0].eval()
        sizes = (res,) if one_size else SIZES
        self.layouts, self.dense_feats = (
            _vit_taps(twin) if name.startswith("vit") else _taps(twin, in_channels, sizes)
        )
        self.kept: dict[str, Tensor] = {}
        for label, (path, _) in self.layouts.items():
            self.net.get_submodule(path).register_forward_hook(_Tap(self.kept, label))

    def forward(self, images: Tensor) -> Features:
        """Features of [B, C, H, W] images."""
        if self.input_res and images.shape[2:] != (self.input_res, self.input_res):
            images = F.interpolate(images, [self.input_res] * 2, mode="bilinear")
        pooled = self.net(images)
        maps = {
            label: _as_map(self.kept.pop(label), layout)
            for label, (_, layout) in self.layouts.items()
        }
        return Features(pooled, maps.pop("dense"), maps)


for _name in NAMES:
    register("encoder", PREFIX + _name)(Torchvision)


def _network(name: str, in_channels: int, res: int | None) -> tuple[nn.Module, int]:
    """The network without its classifier's last layer, and that layer's input width D."""
    import torchvision

    family = name.partition("_")[0]
    options: dict = {}
    if family in ONE_SIZE:
        options = {ONE_SIZE[family]: res if family == "vit" else (res, res)}
    elif family in ("googlenet", "inception"):
        options = {"aux_logits": False, "init_weights": True}
    device = torch.get_default_device()
    try:  # RegNet's constructor reads values from tensors, which 'meta' tensors do not have
        with torch.device("cpu" if family == "regnet" else device):
            net = torchvision.models.get_model(name, weights=None, **options).to(device)
    except (ValueError, AssertionError) as error:
        raise UserError(f"Torchvision.input_res = {res}: {error}") from None
    if in_channels != 3:
        _replace_first(net, in_channels)
    last, layer = [
        (path, module) for path, module in net.named_modules()
        if CLASSES in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
    ][-1]  # fmt: skip
    net.set_submodule(last, nn.Identity())
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    return net, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _replace_first(net: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one with `in_channels` input channels."""
    path, conv = next(
        (path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d)
    )
    sizes: Any = (conv.kernel_size, conv.stride, conv.padding)
    new = nn.Conv2d(in_channels, conv.out_channels, *sizes, bias=conv.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule(path, new)


def _shapes(twin: nn.Module, in_channels: int, res: int) -> dict[str, tuple[int, ...]]:
    """Path -> output shape for images of `res` pixels, in the order in which modules finish.

    Of the network's children, and of the children of its Sequential and ModuleList children.
    """
    kept: dict[str, Tensor] = {}
    hooks = []
    for path, module in twin.named_modules():
        parent = twin.get_submodule(path.rpartition(".")[0])  # branches of blocks are left out
        inside = path.count(".") == 1 and isinstance(parent, (nn.Sequential, nn.ModuleList))
        if path and ("." not in path or inside):
            hooks.append(module.register_forward_hook(_Tap(kept, path)))
    twin(torch.zeros(2, in_channels, res, res, device="meta"))
    for hook in hooks:
        hook.remove()
    return {path: tuple(item.shape) for path, item in kept.items()}


def _taps(
    twin: nn.Module, in_channels: int, sizes: tuple[int, ...]
) -> tuple[dict[str, tuple[str, Layout]], int]:
    """Label -> (module path, layout) of each resolution's last map, and the deepest map's D."""
    shapes = [_shapes(twin, in_channels, size) for size in sizes]
    by_cells: dict[int, tuple[str, Layout, int]] = {}
    for path, shape in shapes[0].items():
        other = shapes[-1][path]
        if len(shape) != 4 or shape[2] == 1:
            continue
        if len(sizes) == 1 or (shape[1] == other[1] and shape[2] != other[2]):
            by_cells[shape[2]] = (path, "nchw", shape[1])
        elif shape[3] == other[3] and shape[2] != other[2]:
            by_cells[shape[2]] = (path, "nhwc", shape[3])
    maps = [by_cells[cells] for cells in sorted(by_cells, reverse=True)][-len(LABELS) :]
    taps = {label: tap[:2] for label, tap in zip(LABELS[-len(maps) :], maps, strict=True)}
    return taps | {"dense": maps[-1][:2]}, maps[-1][2]


def _vit_taps(twin: Any) -> tuple[dict[str, tuple[str, Layout]], int]:
    """As `_taps` for torchvision's `VisionTransformer`, which has one resolution."""
    depth, parts = len(twin.encoder.layers), len(LABELS) - 1
    taps = {"conv": ("conv_proj", "nchw"), "dense": ("encoder.ln", "tokens")}
    for part in range(1, parts + 1):
        path = f"encoder.layers.encoder_layer_{depth * part // parts - 1}"
        taps[LABELS[part]] = (path, "tokens")
    return taps, twin.hidden_dim


def _as_map(output: Tensor, layout: Layout) -> Tensor:
    """A module's output as [B, D, h, w]."""
    if layout == "nhwc":
        return output.permute(0, 3, 1, 2)
    if layout == "tokens":
        side = round((output.shape[1] - 1) ** 0.5)
        return output[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return output
