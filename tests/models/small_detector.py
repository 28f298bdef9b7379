"""A detector of few channels, and objects for it."""

from itertools import pairwise

import torch

import fluxlike as fl
from fluxlike.models.blocks import conv_norm
from fluxlike.models.boxes import to_centres
from fluxlike.models.detector import YOLO, Candidates
from fluxlike.models.detector_loss import detection_loss


def backbone():
    return fl.Chain(*(conv_norm(3, a, b, stride=2) for a, b in pairwise([3, 8, 8, 16, 16, 24])))


def detector(nclasses=2, **settings):
    with fl.seeded(fl.Key(0)):
        return YOLO(backbone(), nclasses=nclasses, **{"channels": 16, **settings})


def images(height=64, width=64, n=2):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def candidates(boxes, logits, stride=8.0):
    """Boxes of one image, each said at the place in its middle."""
    boxes, logits = torch.tensor(boxes), torch.tensor(logits)
    return Candidates(boxes[None], logits[None], to_centres(boxes)[:, :2], torch.full((len(boxes),), stride))


def rows(*objects):
    return torch.tensor([objects], dtype=torch.float32)


def loss(model, x, targets):
    return detection_loss(model(x), targets)


TARGETS = torch.tensor(
    [
        [[4.0, 4.0, 30.0, 28.0, 1.0], [40.0, 30.0, 60.0, 62.0, 0.0]],
        [[10.0, 20.0, 22.0, 30.0, 0.0], [-1.0, -1.0, -1.0, -1.0, -1.0]],
    ]
)
