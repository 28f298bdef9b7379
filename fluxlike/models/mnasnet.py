"""MNASNet: inverted residuals of two kernels and expansions, as a search found them."""

from __future__ import annotations

from fluxlike.layers.activations import relu
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import round_channels
from fluxlike.models.inverted_residual import Stage, scaled, stages_of
from fluxlike.models.mobile import MobileConfig, mobile_network, of_width, timm_origins
from fluxlike.models.origins import Origin

__all__ = ["MNASNet"]

STAGES = (
    Stage(3, 1, 16, residual=False),
    Stage(3, 3, 24, 3, stride=2),
    Stage(5, 3, 40, 3, stride=2),
    Stage(5, 6, 80, 3, stride=2),
    Stage(3, 6, 96, 2),
    Stage(5, 6, 192, 4, stride=2),
    Stage(3, 6, 320),
)


def _configuration(width: float) -> MobileConfig:
    stem = round_channels(32 * width, lowest=0.9)
    stages = stages_of(scaled(STAGES, width), stem, relu)
    return MobileConfig(stem, stages, head=1280, activation=relu, momentum=3e-4, family="MNASNet")


def _torchvision(config: MobileConfig) -> Origin:
    """torchvision counts convolutions, norms and activations, and the first stage in the network's count."""
    first = ((0, "stem.0"), (1, "stem.1"))
    separable = ((3, "0.0"), (4, "0.1"), (6, "1.0"), (7, "1.1"))
    head = len(config.stages) + 7
    places = [*first, *((n, f"stage1.0.branch.{place}") for n, place in separable)]
    places += [(n + 6, f"stage{n}") for n in range(2, len(config.stages) + 1)]
    places += [(head, "head.0"), (head + 1, "head.1")]
    network = ((rf"^layers\.{n}\.", f"backbone.{place}.") for n, place in places)
    block = (
        (rf"(stage\d+\.\d+)\.layers\.{3 * i + j}\.", rf"\1.branch.{i}.{j}.") for i in range(3) for j in (0, 1)
    )
    return Origin("torchvision", (*network, *block, (r"^classifier\.1\.", "classifier.fc.")))


def MNASNet(
    width: float | MobileConfig = 1.0,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float | None = None,
    drop_path: float = 0.0,
) -> Classifier:
    """A mobile network that a search found, its variant B1 (Tan et al. 2018, arXiv 1807.11626).

    Its norms have momentum 3e-4, as in the authors' code and in torchvision.

    Args:
        width: times the channels of each layer but the last convolution, published for 0.5, 0.75, 1 and 1.3;
            or a configuration of one's own. (default: 1)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer; None for the
            configuration's, which is 0.2. (default: None)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        TypeError: a width that is no number.
        ValueError: a width that is not positive, or a configuration of another family.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.MNASNet(0.5, nclasses=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = of_width("MNASNet", width, _configuration)
    origins = (_torchvision(config), *timm_origins(config))
    return mobile_network("MNASNet", config, origins, inchannels, nclasses, dropout, drop_path)
