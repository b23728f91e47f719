"""torchvision's classifiers, segmenters and detectors, and one timm model of each main family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.zoo.entry import Classifier, Detector, Entry, Segmenter, images

TORCHVISION: dict[str, tuple[int, dict[str, Any]]] = {  # side of the images, options
    "alexnet": (64, {}),
    "vgg11_bn": (32, {}),
    "resnet18": (32, {}),
    "resnext50_32x4d": (32, {}),
    "squeezenet1_1": (64, {}),
    "densenet121": (32, {}),
    "googlenet": (64, {"aux_logits": True, "init_weights": False}),
    "inception_v3": (299, {"aux_logits": True, "init_weights": False}),
    "shufflenet_v2_x0_5": (32, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (32, {}),
    "mnasnet0_5": (32, {}),
    "efficientnet_b0": (32, {}),
    "efficientnet_v2_s": (32, {}),
    "regnet_y_400mf": (32, {}),
    "convnext_tiny": (32, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (32, {}),
    "swin_v2_t": (32, {}),
}

TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet10t": (32, {}),
    "res2net50_14w_8s": (32, {}),
    "seresnet18": (32, {}),
    "regnetx_002": (32, {}),
    "repvgg_a0": (32, {}),
    "dla34": (32, {}),
    "hrnet_w18_small": (64, {}),
    "nf_resnet26": (32, {}),
    "vovnet39a": (32, {}),
    "ghostnet_050": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "tf_efficientnet_lite0": (64, {}),
    "mixnet_s": (32, {}),
    "convnextv2_atto": (32, {}),
    "inception_next_atto": (64, {}),
    "convmixer_768_32": (32, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 4}),
    "deit_tiny_distilled_patch16_224": (32, {"img_size": 32, "depth": 4}),
    "beit_base_patch16_224": (32, {"img_size": 32, "depth": 3, "embed_dim": 96, "num_heads": 3}),
    "eva02_tiny_patch14_224": (28, {"img_size": 28, "depth": 4}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56}),
    "cait_xxs24_224": (32, {"img_size": 32, "depth": 4}),
    "xcit_nano_12_p16_224": (32, {"img_size": 32}),
    "convit_tiny": (32, {"img_size": 32}),
    "crossvit_tiny_240": (240, {}),
    "pit_ti_224": (64, {"img_size": 64}),
    "levit_128s": (64, {"img_size": 64}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "poolformer_s12": (32, {}),
    "coat_lite_tiny": (32, {"img_size": 32}),
    "davit_tiny": (64, {"embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 8)}),
    "fastvit_t8": (64, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "gmlp_ti16_224": (32, {"img_size": 32}),
    "sequencer2d_s": (56, {"img_size": 56, "layers": (1, 1, 1, 1), "embed_dims": (48, 96, 96, 96)}),
}


def _torchvision(name: str, size: int, options: dict[str, Any]) -> Entry:
    def make() -> Classifier:
        import torchvision

        return Classifier(torchvision.models.get_model(name, weights=None, num_classes=10, **options))

    return Entry(name, "torchvision", make, images(size))


def _maxvit() -> Classifier:
    import torchvision

    return Classifier(
        torchvision.models.MaxVit(
            input_size=(64, 64), stem_channels=16, partition_size=2, block_channels=[16, 32], block_layers=[1, 2],
            head_dim=8, stochastic_depth_prob=0.2, num_classes=10,
        )
    )  # fmt: skip


def _segmentation(name: str) -> Entry:
    def make() -> Segmenter:
        import torchvision

        options = {"weights": None, "weights_backbone": None, "num_classes": 4}
        auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
        return Segmenter(getattr(torchvision.models.segmentation, name)(**options, **auxiliary))

    return Entry(name, "torchvision", make, lambda: (torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64))))


def _detection(name: str) -> Entry:
    def make() -> Detector:
        import torchvision

        options = {"weights": None, "weights_backbone": None, "num_classes": 4}
        return Detector(getattr(torchvision.models.detection, name)(**options))

    def batch() -> Any:
        targets = [
            {"boxes": torch.tensor([[4.0, 4.0, 40.0, 44.0], [20.0, 8.0, 60.0, 60.0]]), "labels": torch.tensor([1, 2])}
            for _ in range(2)
        ]
        return [torch.rand(3, 64, 64) for _ in range(2)], targets

    return Entry(name, "torchvision", make, batch)


def _timm(name: str, size: int, options: dict[str, Any]) -> Entry:
    def make() -> Classifier:
        import timm

        return Classifier(timm.create_model(name, pretrained=False, num_classes=10, **options))

    return Entry(f"timm {name}", "timm", make, images(size))


def entries() -> Iterator[Entry]:
    """All of them."""
    for name, (size, options) in TORCHVISION.items():
        yield _torchvision(name, size, options)
    yield Entry("maxvit", "torchvision", _maxvit, images(64))
    for name in ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"):
        yield _segmentation(name)
    for name in ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"):
        yield _detection(name)
    for name, (size, options) in TIMM.items():
        yield _timm(name, size, options)
