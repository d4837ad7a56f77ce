"""Colour spaces and colour changes of whole batches, on the device of the input.

An image's channels are the third axis from the end: [..., 3, H, W]. LAB is CIE L*a*b* of
sRGB under D65 (2 degrees), with the constants of IEC 61966-2-1 and CIE 15.
"""

import functools
import math

import torch
from torch import Tensor

# Linear RGB to XYZ, and the XYZ of D65's white.
XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
# Responses (see `response`) to LAB.
LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
DELTA = 6 / 29  # cube root of the value below which CIE's curve is a straight line
# Weights of R, G, B in a pixel's brightness (ITU-R BT.601, rounded as torchvision does).
LUMA = (0.2989, 0.587, 0.114)


@functools.cache
def constant(values: tuple, device: torch.device) -> Tensor:
    """A tensor of `values` on `device`, copied once: each copy would make the host wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def linear(values: Tensor) -> Tensor:
    """Light intensity 0..1 of sRGB values 0..255: bytes by table, floats by the formula."""
    if values.dtype == torch.uint8:
        # index_select with int32 is 3.5 times as fast on a CPU as indexing with int64
        table = _linear_table(values.device)
        return table.index_select(0, values.flatten().int()).view(values.shape)
    values = values.float() / 255
    bent = ((values + 0.055) / 1.055).clamp_min(0).pow(2.4)
    return torch.where(values > 0.04045, bent, values / 12.92)


@functools.cache
def _linear_table(device: torch.device) -> Tensor:
    return constant(tuple(linear(torch.arange(256.0)).tolist()), device)


def response(images: Tensor) -> Tensor:
    """The eye's response g = f(XYZ / white) - f(0) with CIE's f, [..., 3, H, W] float32.

    LAB is the linear map `LAB` of it, without a constant, so code that changes colours by a
    matrix anyway gets LAB for nothing, and a black pixel stays exactly 0.

    Args:
        images: RGB, uint8 or float 0..255, [..., 3, H, W].
    """
    white = constant(WHITE, images.device)[:, None]
    light = (constant(XYZ, images.device) / white) @ linear(images).flatten(-2)
    # f is a cube root above DELTA^3 and its tangent there below it: both parts in one sum,
    # without a choice. exp2(log2 / 3) is the fastest exact root of torch on a CPU.
    root = light.log2().mul_(1 / 3).exp2_().sub_(DELTA).clamp_(min=0)
    g = root.add_(light.clamp_(max=DELTA**3), alpha=1 / (3 * DELTA**2))
    return g.view(images.shape)


def rgb_to_lab(images: Tensor) -> Tensor:
    """LAB of RGB images: [..., 3, H, W], uint8 or float 0..255, to float32 of that shape.

    L is 0..100, a and b about -128..127; agrees with scikit-image's `rgb2lab` to 1e-3.
    """
    matrix = constant(LAB, images.device)
    return (matrix @ response(images).flatten(-2)).view(images.shape)


def luma(images: Tensor) -> Tensor:
    """Brightness of RGB images [..., 3, H, W] in their own units, [..., 1, H, W]."""
    red, green, blue = images.unbind(-3)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(-3)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """RGB images 0..1 with their HSV hue moved by `turns` (of a full circle, -0.5..0.5).

    Args:
        images: float, [..., 3, H, W].
        turns: broadcasts against [..., H, W].
    """
    red, green, blue = images.unbind(-3)
    value, least = images.amax(-3), images.amin(-3)
    chroma = value - least
    unit = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, (blue - red) / unit + 2, (red - green) / unit + 4),
    )
    # Each channel falls from `value` by up to `chroma`, as far as the hue is from its own.
    angles = [(offset + hue + 6 * turns) % 6 for offset in (5, 3, 1)]
    falls = [torch.minimum(angle, 4 - angle).clamp(0, 1) for angle in angles]
    return torch.stack([value - chroma * fall for fall in falls], -3)


def hue_rotation(turns: Tensor) -> Tensor:
    """Matrices [n, 3, 3] that turn RGB around the grey axis R = G = B.

    The linear stand-in for `shift_hue`, equal to it at thirds of a circle. In between HSV
    turns in a hexagon and this in a circle: for shifts up to 0.1 the values 0..1 of a
    moderately coloured image differ by 0.01 to 0.02 on average.

    Args:
        turns: [n], of a full circle.
    """
    angle = (2 * math.pi * turns)[:, None, None]
    cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
    eye = torch.eye(3, device=turns.device)
    # eye rolled down less eye rolled up: the cross product with (1, 1, 1)
    cross = eye.roll(1, 0) - eye.roll(-1, 0)
    return cos * eye + (1 - cos) / 3 + sin * cross


def lab_to_rgb(lab: Tensor) -> Tensor:
    """LAB [n, 3, H, W] as sRGB 0..255 [n, 3, H, W], not yet clamped, to look at."""
    light, a, b = lab.unbind(1)
    y = (light + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(f > DELTA, f**3, 3 * DELTA**2 * (f - 4 / 29))
    xyz = xyz * lab.new_tensor(WHITE).view(3, 1, 1)
    rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(lab.new_tensor(XYZ)), xyz).clamp(0)
    return 255 * torch.where(rgb > 0.0031308, 1.055 * rgb ** (1 / 2.4) - 0.055, 12.92 * rgb)
