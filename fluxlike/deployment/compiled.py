"""`inference`: a model compiled for its outputs alone, with its weights as constants."""

from __future__ import annotations

from typing import Any

import torch

from fluxlike.deployment.fold import folded
from fluxlike.scope.mode import mode
from fluxlike.transforms.jit.function import CacheInfo, Jitted, Lowered, surrounded
from fluxlike.trees.adopt import adopted
from fluxlike.trees.algebra import clone
from fluxlike.trees.functor import leaf

__all__ = ["Inference", "inference"]


def inference(model: Any, /, *example: Any) -> Inference:
    """Compile a model for inference: BatchNorms folded, constants computed, weights packed for the kernels.

    The model runs in test mode and without gradients. Its weights are constants of the compiled function,
    which has copies of them: what is written to the model later is not seen. Calls of other shapes or dtypes
    are compiled when they first come, each with weights packed for it, so pad to few sizes.

    Inside a transform, such as the gradient of an input, the model itself runs.

    Numbers are those of the model to rounding, where they are finite and of moderate size. Convolutions of
    3×3 with stride 1 in float32 are computed by Winograd's tiles of 2×2 where that is faster, which is as
    exact as the direct form (Lavin & Gray 2015, arXiv 1509.09308); compiling them takes longer. A model in
    `bf16` or in another dtype is compiled in that dtype; inputs laid out by `channels_last` need no copy.

    Args:
        model: a layer or any callable tree; a torch module is taken by `from_torch`.
        example: inputs as calls will have them; none to compile at the first call.

    Returns:
        An `Inference`: a function of the inputs.

    Raises:
        TypeError: the model can't be called.
        RuntimeError: a line of the model asks for the value of a tensor, as in `jit`.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Conv((3, 3), 3, 8), fl.BatchNorm(8, fl.relu), fl.GlobalMeanPool())
        >>> x = torch.randn(1, 3, 16, 16)
        >>> fast = fl.inference(model, x)
        >>> torch.allclose(fast(x), model(x), atol=1e-6)
        True
        >>> fast
        inference(Chain)
    """
    model = adopted(model)
    if not callable(model):
        raise TypeError(f"inference takes a model that can be called, found {type(model).__name__}")
    compiled = Inference(model)
    if example:
        compiled(*example)
    return compiled


@leaf
class Inference:
    """A model compiled by `inference`.

    Attributes:
        model: the model, with its BatchNorms folded.

    Example:
        >>> import torch, fluxlike as fl
        >>> fast = fl.inference(fl.Chain(fl.Conv((1, 1), 2, 3), fl.BatchNorm(3, fl.relu)))
        >>> fast.model
        Chain(
          Conv((1, 1), 2, 3, relu),  # 9 parameters
          identity,
        )                            # Total: 2 tensors, 9 parameters, 36 bytes
        >>> fast(torch.ones(4, 2, 5, 5)).shape
        torch.Size([4, 3, 5, 5])
    """

    def __init__(self, model: Any) -> None:
        self.model = model = clone(folded(model, surely=True))

        def run(*inputs: Any, **named: Any) -> Any:
            return model(*inputs, **named)

        run.__qualname__ = type(model).__qualname__
        self._compiled = Jitted(run, frozen=True)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        with mode("test"):
            if surrounded():
                return self._compiled(*inputs, **named)
            with torch.no_grad():
                return self._compiled(*inputs, **named)

    def lower(self, *inputs: Any, **named: Any) -> Lowered:
        """The graph of a call, and the tensors that become constants of it, as in `jit`.

        Args:
            inputs: as in a call.
            named: as in a call.

        Example:
            >>> import torch, fluxlike as fl
            >>> len(fl.inference(fl.Dense(2, 3)).lower(torch.ones(1, 2)).captured)
            2
        """
        with mode("test"), torch.no_grad():
            return self._compiled.lower(*inputs, **named)

    def cache_info(self) -> CacheInfo:
        """How often it was called and compiled.

        Example:
            >>> import torch, fluxlike as fl
            >>> fl.inference(fl.Dense(2, 3), torch.ones(1, 2)).cache_info()
            CacheInfo(calls=1, traces=1)
        """
        return self._compiled.cache_info()

    def __repr__(self) -> str:
        return f"inference({type(self.model).__name__})"
