"""A network for images: a backbone that finds features, and a classifier of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluxlike.advice import OF_MODULES
from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import flatten, relu
from fluxlike.layers.adaptive_pool import AdaptiveMeanPool
from fluxlike.layers.basic import Dense
from fluxlike.layers.checks import require_callable
from fluxlike.layers.compose import Chain
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.errors import within
from fluxlike.models.origins import Origin
from fluxlike.trees.adopt import adopted
from fluxlike.trees.functor import functor

__all__ = ["Classifier", "hidden_classifier", "pooled_classifier"]


@functor(children=("backbone", "classifier"))
class Classifier:
    """A backbone and a classifier: ``classifier(backbone(x))``.

    What the models of the zoo for images are. The backbone gives feature maps (N, C, H, W), before they are
    pooled, or tokens; a `Chain` whose steps may be taken apart, as `UNet` does.

    Args:
        backbone: layers.
        classifier: layers, from features to scores.
        origins: the libraries whose weights `load_weights` can read into the model. (default: none)

    Attributes:
        backbone: the layers.
        classifier: the layers.
        origins: the libraries.

    Input: (N, inchannels, H, W). Output: (N, nclasses), not normalised.

    Raises:
        TypeError: a part that can't be called.
        LayerError: from a call: a layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.ResNet(18, nclasses=10)
        >>> model.backbone(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 512, 2, 2])
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        backbone: Callable[[Any], Any],
        classifier: Callable[[Any], Tensor],
        *,
        origins: tuple[Origin, ...] = (),
    ) -> None:
        for part, f in (("backbone", backbone), ("classifier", classifier)):
            require_callable(type(self).__name__, part, f)
        self.backbone, self.classifier = adopted(backbone), adopted(classifier)
        self.origins = origins

    def __getattr__(self, name: str) -> Any:
        own = type(self).__name__
        if name in OF_MODULES:
            raise AttributeError(f"a {own} has no {name!r}: {OF_MODULES[name]}")
        raise AttributeError(
            f"a {own} has no {name!r}; it has .backbone and .classifier, whose steps are at "
            "model.classifier['fc'] and the like"
        )

    def __call__(self, x: Any) -> Tensor:
        return within(".classifier", self.classifier, within(".backbone", self.backbone, x))


def pooled_classifier(channels: int, nclasses: int, dropout: float = 0.0) -> Chain:
    """The mean over all places, and a Dense layer: (N, channels, H, W) → (N, nclasses).

    Args:
        channels: of the features.
        nclasses: how many classes.
        dropout: the probability with which a feature is dropped. (default: 0)
    """
    return Chain(
        pool=AdaptiveMeanPool((1, 1)),
        flatten=flatten,
        dropout=Dropout(dropout),
        fc=Dense(channels, nclasses),
    )


def hidden_classifier(size: int, channels: int, hidden: int, nclasses: int, dropout: float) -> Chain:
    """Features of one size, two hidden layers, and scores: (N, channels, H, W) → (N, nclasses).

    Dropout follows each hidden layer, as in section 4.2 of AlexNet's paper.

    Args:
        size: height and width to which the features are pooled.
        channels: of the features.
        hidden: features of each hidden layer.
        nclasses: how many classes.
        dropout: the probability with which a feature of a hidden layer is dropped.
    """
    return Chain(
        pool=AdaptiveMeanPool((size, size)),
        flatten=flatten,
        fc1=Dense(channels * size**2, hidden, relu, init=kaiming_normal),
        dropout1=Dropout(dropout),
        fc2=Dense(hidden, hidden, relu, init=kaiming_normal),
        dropout2=Dropout(dropout),
        fc3=Dense(hidden, nclasses),
    )
