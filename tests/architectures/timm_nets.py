"""Whole networks of timm with random weights, at the sizes of images that they are made for."""

from __future__ import annotations

from functools import partial

from record import Architecture, normal
from torch import nn

NETS = {
    "coatnet_pico_rw_224": 224,
    "convnext_atto": 224,
    "densenet121": 224,
    "edgenext_xx_small": 256,
    "efficientformer_l1": 224,
    "efficientnet_b0": 224,
    "efficientvit_b0": 224,
    "efficientvit_m0": 224,
    "eva02_tiny_patch14_224": 224,
    "fastvit_t8": 256,
    "ghostnet_050": 224,
    "hardcorenas_a": 224,
    "levit_128s": 224,
    "maxvit_rmlp_pico_rw_256": 256,
    "mobilenetv3_small_050": 224,
    "mobilenetv4_conv_small": 224,
    "mobileone_s0": 224,
    "poolformer_s12": 224,
    "pvt_v2_b0": 224,
    "regnety_002": 224,
    "repvgg_a0": 224,
    "resnet10t": 176,
    "tinynet_e": 106,
    "vit_tiny_patch16_224": 224,
}


def _made(name: str) -> nn.Module:
    import timm

    net: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
    return net


TIMM = [
    Architecture(f"timm {name}", partial(_made, name), {"x": normal(1, 3, size, size)})
    for name, size in NETS.items()
]
