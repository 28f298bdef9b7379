"""The zoo: networks that are published, as short compositions of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxlike.rooms import room

if TYPE_CHECKING:
    from fluxlike.models.alexnet import AlexNet, AlexNetConfig
    from fluxlike.models.bert import BERT, BERTConfig, Encoded, TextClassifier, TextEncoder
    from fluxlike.models.blocks import concatenated, conv_norm, depth_rates, squeeze_excite
    from fluxlike.models.boxes import (
        complete_iou,
        generalised_iou,
        iou,
        non_maximum_suppression,
        to_centres,
        to_corners,
    )
    from fluxlike.models.classifier import Classifier
    from fluxlike.models.convmixer import ConvMixer, ConvMixerConfig
    from fluxlike.models.convnext import ConvNeXt, ConvNeXtConfig
    from fluxlike.models.densenet import DenseNet, DenseNetConfig
    from fluxlike.models.detections import Detections, decode, detect
    from fluxlike.models.detector import YOLO, Candidates, Detector
    from fluxlike.models.detector_loss import detection_loss, padded_objects
    from fluxlike.models.detector_metrics import average_precision, mean_average_precision
    from fluxlike.models.efficientnet import EfficientNet, EfficientNetV2
    from fluxlike.models.g_mlp import SplitGate, gMLP, gMLPConfig
    from fluxlike.models.generation import LanguageModel, generate
    from fluxlike.models.googlenet import GoogLeNet
    from fluxlike.models.gpt import GPT, GPTConfig
    from fluxlike.models.inception import InceptionConfig, Pool, ScaledResidual, Unit
    from fluxlike.models.inception_resnet import InceptionResNetV2
    from fluxlike.models.inception_v3 import InceptionV3
    from fluxlike.models.inception_v4 import InceptionV4
    from fluxlike.models.inverted_residual import Block, Stage, stages_of
    from fluxlike.models.mixers import MixerConfig
    from fluxlike.models.mlp_mixer import MLPMixer
    from fluxlike.models.mnasnet import MNASNet
    from fluxlike.models.mobile import MobileConfig
    from fluxlike.models.mobilenet_v1 import MobileNetV1
    from fluxlike.models.mobilenet_v2 import MobileNetV2
    from fluxlike.models.mobilenet_v3 import MobileNetV3
    from fluxlike.models.origins import Origin
    from fluxlike.models.patches import ClassToken, PatchEmbedding, Positions
    from fluxlike.models.res2net import MultiScale, Res2Net, Res2NetConfig, Res2NeXt
    from fluxlike.models.res_mlp import ResMLP, ResMLPConfig
    from fluxlike.models.residual import Residual
    from fluxlike.models.resnet import ResNet, ResNetConfig, ResNeXt, SEResNet, SEResNeXt, WideResNet
    from fluxlike.models.squeezenet import SqueezeNet, SqueezeNetConfig
    from fluxlike.models.tokens import TokenEmbedding
    from fluxlike.models.unet import Segmenter, UNet
    from fluxlike.models.up_block import UpBlock
    from fluxlike.models.vgg import VGG, VGGConfig
    from fluxlike.models.vit import ViT, ViTConfig
    from fluxlike.models.weights import load_weights
    from fluxlike.models.xception import Xception, XceptionConfig


__all__ = [
    "AlexNet",
    "AlexNetConfig",
    "BERT",
    "BERTConfig",
    "Block",
    "Candidates",
    "ClassToken",
    "Classifier",
    "ConvMixer",
    "ConvMixerConfig",
    "ConvNeXt",
    "ConvNeXtConfig",
    "DenseNet",
    "DenseNetConfig",
    "Detections",
    "Detector",
    "EfficientNet",
    "EfficientNetV2",
    "Encoded",
    "GPT",
    "GPTConfig",
    "GoogLeNet",
    "InceptionConfig",
    "InceptionResNetV2",
    "InceptionV3",
    "InceptionV4",
    "LanguageModel",
    "MLPMixer",
    "MNASNet",
    "MixerConfig",
    "MobileConfig",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3",
    "MultiScale",
    "Origin",
    "PatchEmbedding",
    "Pool",
    "Positions",
    "Res2NeXt",
    "Res2Net",
    "Res2NetConfig",
    "ResMLP",
    "ResMLPConfig",
    "ResNeXt",
    "ResNet",
    "ResNetConfig",
    "Residual",
    "SEResNeXt",
    "SEResNet",
    "ScaledResidual",
    "Segmenter",
    "SplitGate",
    "SqueezeNet",
    "SqueezeNetConfig",
    "Stage",
    "TextClassifier",
    "TextEncoder",
    "TokenEmbedding",
    "UNet",
    "Unit",
    "UpBlock",
    "VGG",
    "VGGConfig",
    "ViT",
    "ViTConfig",
    "WideResNet",
    "Xception",
    "XceptionConfig",
    "YOLO",
    "average_precision",
    "complete_iou",
    "concatenated",
    "conv_norm",
    "decode",
    "depth_rates",
    "detect",
    "detection_loss",
    "gMLP",
    "gMLPConfig",
    "generalised_iou",
    "generate",
    "iou",
    "load_weights",
    "mean_average_precision",
    "non_maximum_suppression",
    "padded_objects",
    "squeeze_excite",
    "stages_of",
    "to_centres",
    "to_corners",
]

#: The module of each public name, below this package.
WHEN_USED = {
    "AlexNet": "alexnet",
    "AlexNetConfig": "alexnet",
    "BERT": "bert",
    "BERTConfig": "bert",
    "Block": "inverted_residual",
    "Candidates": "detector",
    "ClassToken": "patches",
    "Classifier": "classifier",
    "ConvMixer": "convmixer",
    "ConvMixerConfig": "convmixer",
    "ConvNeXt": "convnext",
    "ConvNeXtConfig": "convnext",
    "DenseNet": "densenet",
    "DenseNetConfig": "densenet",
    "Detections": "detections",
    "Detector": "detector",
    "EfficientNet": "efficientnet",
    "EfficientNetV2": "efficientnet",
    "Encoded": "bert",
    "GPT": "gpt",
    "GPTConfig": "gpt",
    "GoogLeNet": "googlenet",
    "InceptionConfig": "inception",
    "InceptionResNetV2": "inception_resnet",
    "InceptionV3": "inception_v3",
    "InceptionV4": "inception_v4",
    "LanguageModel": "generation",
    "MLPMixer": "mlp_mixer",
    "MNASNet": "mnasnet",
    "MixerConfig": "mixers",
    "MobileConfig": "mobile",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3": "mobilenet_v3",
    "MultiScale": "res2net",
    "Origin": "origins",
    "PatchEmbedding": "patches",
    "Pool": "inception",
    "Positions": "patches",
    "Res2NeXt": "res2net",
    "Res2Net": "res2net",
    "Res2NetConfig": "res2net",
    "ResMLP": "res_mlp",
    "ResMLPConfig": "res_mlp",
    "ResNeXt": "resnet",
    "ResNet": "resnet",
    "ResNetConfig": "resnet",
    "Residual": "residual",
    "SEResNeXt": "resnet",
    "SEResNet": "resnet",
    "ScaledResidual": "inception",
    "Segmenter": "unet",
    "SplitGate": "g_mlp",
    "SqueezeNet": "squeezenet",
    "SqueezeNetConfig": "squeezenet",
    "Stage": "inverted_residual",
    "TextClassifier": "bert",
    "TextEncoder": "bert",
    "TokenEmbedding": "tokens",
    "UNet": "unet",
    "Unit": "inception",
    "UpBlock": "up_block",
    "VGG": "vgg",
    "VGGConfig": "vgg",
    "ViT": "vit",
    "ViTConfig": "vit",
    "WideResNet": "resnet",
    "Xception": "xception",
    "XceptionConfig": "xception",
    "YOLO": "detector",
    "average_precision": "detector_metrics",
    "complete_iou": "boxes",
    "concatenated": "blocks",
    "conv_norm": "blocks",
    "decode": "detections",
    "depth_rates": "blocks",
    "detect": "detections",
    "detection_loss": "detector_loss",
    "gMLP": "g_mlp",
    "gMLPConfig": "g_mlp",
    "generalised_iou": "boxes",
    "generate": "generation",
    "iou": "boxes",
    "load_weights": "weights",
    "mean_average_precision": "detector_metrics",
    "non_maximum_suppression": "boxes",
    "padded_objects": "detector_loss",
    "squeeze_excite": "blocks",
    "stages_of": "inverted_residual",
    "to_centres": "boxes",
    "to_corners": "boxes",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__, {n: f"{__name__}.{home}" for n, home in WHEN_USED.items()})
