"""Rows of patch-based networks."""

from zoo_row import ZooRow

from fluxlike.models.convmixer import ConvMixer, ConvMixerConfig
from fluxlike.models.convnext import ConvNeXt, ConvNeXtConfig
from fluxlike.models.g_mlp import gMLP, gMLPConfig
from fluxlike.models.mixers import MixerConfig
from fluxlike.models.mlp_mixer import MLPMixer
from fluxlike.models.res_mlp import ResMLP, ResMLPConfig
from fluxlike.models.vit import ViT, ViTConfig

CONVNEXT = ConvNeXtConfig((1, 1, 1, 1), (8, 8, 16, 16), layer_scale=0.1)
CONVMIXER = ConvMixerConfig(depth=2, channels=16, kernel_size=3, patch_size=4)
VIT = ViTConfig(depth=2, dim=16, num_heads=2, patch_size=8)
MIXER = MixerConfig(depth=2, dim=16, patch_size=8)
GMLP = gMLPConfig(depth=2, dim=16, patch_size=8)
RES_MLP = ResMLPConfig(depth=2, dim=16, patch_size=8)

ROWS = [
    ZooRow("ConvNeXt", lambda **s: ConvNeXt(CONVNEXT, **s), 32),
    ZooRow("ConvMixer", lambda **s: ConvMixer(CONVMIXER, **s), 16),
    ZooRow("ViT", lambda **s: ViT(VIT, image_size=16, **s), 16),
    ZooRow("ViT without a token of the class", lambda **s: ViT(VIT, image_size=16, pool="mean", **s), 16),
    ZooRow("MLPMixer", lambda **s: MLPMixer(MIXER, image_size=16, **s), 16),
    ZooRow("ResMLP", lambda **s: ResMLP(RES_MLP, image_size=16, **s), 16),
    ZooRow("gMLP", lambda **s: gMLP(GMLP, image_size=16, **s), 16),
]
