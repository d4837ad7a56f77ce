"""Networks against torchvision's, the activation against torch's, and what probes reach."""

import pytest
import torch
import torch.nn.functional as F

from selfstudy import configure, registry
from selfstudy.models.resnet import CELU, DEEP, ResNet
from selfstudy.models.wrapper import Wrapper
from selfstudy.storage import snapshot
from selfstudy.types import Batch, DataInfo
from util.errors import UserError

INFO = DataInfo(
    3, 32, "rgb", "uint8", (0.0,) * 3, (1.0,) * 3, {"train": 8}, {"class": 10, "pose": 5}
)
pytestmark = pytest.mark.usefixtures("narrow")
registry.discover()


def batch(n=4, size=32):
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(
        (images,), {"class": torch.arange(n), "pose": torch.arange(n) % 5}, torch.arange(n)
    )


def test_celu_equals_torch_in_value_and_gradient():
    ours = torch.randn(2000).mul(2).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    CELU(0.075)(ours * 1).square().sum().backward()
    F.celu(theirs, 0.075).square().sum().backward()
    assert torch.allclose(CELU(0.075)(ours.detach()), F.celu(theirs, 0.075), atol=1e-7)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    double = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: CELU(0.075)(x * 1), double)


@pytest.mark.parametrize("value", [0.0, -0.0, 100.0, -100.0, float("inf"), float("-inf")])
def test_celu_at_the_edges(value):
    x = torch.tensor([value])
    assert torch.equal(CELU(0.075)(x.clone()), F.celu(x, 0.075))


@pytest.mark.parametrize("choice", sorted(DEEP))
def test_deep_networks_have_torchvisions_weights(choice):
    import torchvision

    with torch.device("meta"):
        ours = ResNet(3, choice, width=1.0, out_feats=1000)
        theirs = getattr(torchvision.models, choice)()
    mine = {name: tuple(item.shape) for name, item in ours.state_dict().items()}
    assert mine == {
        our_name(name): tuple(item.shape) for name, item in theirs.state_dict().items()
    }


def our_name(name: str) -> str:
    """A name of torchvision's in our stages."""
    first, _, rest = name.partition(".")
    if first in ("conv1", "bn1"):
        return f"layers.conv.{name}"
    return f"layers.block{first[5:]}.{rest}" if first.startswith("layer") else name


@pytest.mark.parametrize(
    "choice, dilate", [("resnet18", None), ("resnet50", [False, False, True])]
)
def test_deep_networks_compute_what_torchvisions_do(choice, dilate):
    import torchvision

    options = {"replace_stride_with_dilation": dilate} if dilate else {}
    theirs = getattr(torchvision.models, choice)(**options).eval()
    ours = ResNet(3, choice, out_feats=1000, **options | {"width": 1.0}).eval()
    ours.load_state_dict({our_name(name): item for name, item in theirs.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images).pooled, theirs(images), atol=1e-4)


@pytest.mark.parametrize("choice", ["resnet9", "resnet18"])
@pytest.mark.parametrize("prepool", [False, True])
def test_features_have_the_promised_shapes(choice, prepool):
    feats = ResNet(3, choice, prepool_fc=prepool, skip_init_pool=True)(batch().views[0])
    assert feats.pooled.shape == (4, 16)
    assert feats.dense.shape[1] == (16 if prepool else {"resnet9": 64, "resnet18": 64}[choice])
    names = ["conv", "block1", "block2", "block3"] + (["block4"] if choice != "resnet9" else [])
    assert list(feats.layers) == names
    if prepool:
        assert torch.allclose(feats.pooled, feats.dense.mean((2, 3)))


def test_half_width_halves_every_stage():
    whole, half = ResNet(3, "resnet18"), ResNet(3, "resnet18", is_half=True)
    images = batch().views[0]
    channels = [item.shape[1] for item in whole(images).layers.values()]
    assert [item.shape[1] * 2 for item in half(images).layers.values()] == channels


def test_feat_layer_stops_early():
    feats = ResNet(3, "resnet9", feat_layer=1)(batch().views[0])
    assert list(feats.layers) == ["conv", "block1"] and feats.pooled.shape == (4, 16)
    with pytest.raises(UserError, match="4 stages"):
        ResNet(3, "resnet9", feat_layer=7)


def test_frozen_stages_do_not_learn_nor_move_their_statistics():
    net = ResNet(3, "resnet9", freeze_at_k=2).train()
    before = {name: item.clone() for name, item in net.state_dict().items()}
    optimizer = torch.optim.SGD([item for item in net.parameters() if item.requires_grad], 0.1)
    net(batch().views[0]).pooled.square().mean().backward()
    optimizer.step()
    moved = {name.split(".")[1] for name, item in net.state_dict().items()
             if not torch.equal(item, before[name]) and name.startswith("layers")}  # fmt: skip
    assert moved == {"block2", "block3"}


def test_dilation_is_refused_for_resnet9():
    with pytest.raises(UserError, match="other than resnet9"):
        ResNet(3, "resnet9", replace_stride_with_dilation=[False, False, True])


def test_probes_read_detached_features_unless_told_otherwise():
    for finetune in (False, True):
        model = Wrapper(INFO, finetune_classifier=finetune)
        out = model(batch())
        assert {name: item.shape[1] for name, item in out.logits.items()} == {
            "fc/class": 10, "mlp/class": 10, "fc/pose": 5, "mlp/pose": 5}  # fmt: skip
        sum(item.sum() for item in out.logits.values()).backward()
        reached = any(item.grad is not None for item in model.backbone.parameters())
        assert reached is finetune


def test_out_classes_name_the_probes_in_order():
    assert set(Wrapper(INFO, out_classes=[10, 5]).probes) == {
        "fc/class", "mlp/class", "fc/pose", "mlp/pose"}  # fmt: skip
    assert set(Wrapper(INFO, out_classes=[12]).probes) == {"fc/class", "mlp/class"}
    with pytest.raises(UserError, match="10 classes of 'class'"):
        Wrapper(INFO, out_classes=[4])
    dense = Wrapper(INFO, out_classes=[11, 1], dense_pred=True)
    assert dense(batch()).logits["fc/segment"].shape == (4, 11, 4, 4)


def test_frozen_encoder_stays_as_it_is():
    model = Wrapper(INFO, finetune_selfsup=False).train()
    before = {name: item.clone() for name, item in model.backbone.state_dict().items()}
    out = model(batch())
    sum(item.sum() for item in out.logits.values()).backward()
    assert all(item.grad is None for item in model.backbone.parameters())
    after = model.backbone.state_dict()
    assert all(torch.equal(item, after[name]) for name, item in before.items())


def test_warmup_holds_the_backbone_for_its_steps():
    model = Wrapper(INFO, finetune_classifier=True, warmup_fc=2).train()
    for steps, reached in ((0, False), (1, False), (2, True)):
        model.zero_grad()
        model.before_step(steps)
        model(batch()).logits["fc/class"].sum().backward()
        assert any(item.grad is not None for item in model.backbone.parameters()) is reached


FORMER = {"momentum_encoder": "lagging", "projector": "projection", "predictor": "prediction",
          "scheduled": "clock"}  # fmt: skip


def test_former_gin_names_and_tensor_names_still_load():
    bindings = ("Lagging.momentum = 0.5", "TwoViews.unit_sphere = False",
                "projection.layers = 3", "prediction.layers = 2",
                "DINOModel.outputs = 6")  # fmt: skip
    configure.load(configure.Spec((), bindings))
    model = Wrapper(INFO, model_choice="dino")
    method = model.backbone
    assert method.momentum == 0.5 and method.unit_sphere is False
    linear = [sum(isinstance(layer, torch.nn.Linear) for layer in head)
              for head in (method.projector, method.predictor)]  # fmt: skip
    assert linear == [3, 2]
    saved = {".".join(FORMER.get(part, part) for part in name.split(".")): torch.ones_like(item)
             for name, item in model.state_dict().items()}  # fmt: skip
    parts = {part for name in saved for part in name.split(".")}
    assert set(FORMER.values()) <= parts and not set(FORMER) & parts
    snapshot.load_weights(model, saved, lambda name: False)
    assert all(bool((item == 1).all()) for item in model.state_dict().values())
    assert all(method.scheduled.due.values())
