"""A model of the zoo beside that of another library, with the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fluxlike as fl

__all__ = ["assert_same_as", "assert_same_scores", "on_meta", "scrambled"]


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in float64 and eval mode, with no scale or shift left as a constructor makes them alike."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for x in module.parameters():
            if (x == x.flatten()[:1]).all():
                x.mul_(_drawn(x, 0.7, 1.3, generator)).add_(_drawn(x, -0.1, 0.1, generator))
    return module


def on_meta(make: Callable[..., Any], /, *args: Any, **settings: Any) -> Any:
    """What is made, of shapes alone: neither drawn nor held in memory."""
    with torch.device("meta"):
        return make(*args, **settings)


def assert_same_as(
    ours: Any, theirs: nn.Module, *inputs: Tensor, output: Callable[[Any], Tensor] = lambda y: y
) -> Any:
    """Hold ours, with the weights of theirs, to theirs: its scores, a step of training, its parameters.

    Scores and every tensor after the step agree in float64 to 1e-9 of the largest number.

    Args:
        ours: a model of the zoo, whose own weights don't matter; may be on the meta device.
        theirs: that of another library.
        inputs: of several examples; floating ones in float64.
        output: of what theirs gives, the scores, classes last. (default: all of it)

    Returns:
        Ours with the weights, before the step.
    """
    model = assert_same_scores(ours, theirs, *inputs, output=output)
    _assert_same_step(model, theirs, *inputs, output=output)
    return model


def assert_same_scores(
    ours: Any, theirs: nn.Module, *inputs: Tensor, output: Callable[[Any], Tensor] = lambda y: y
) -> Any:
    """The part of `assert_same_as` that trains nothing: the scores, and how many parameters there are."""
    theirs = _with_statistics(scrambled(theirs), *inputs)
    model = fl.models.load_weights(theirs.state_dict(), fl.f64(ours))
    with torch.no_grad():
        y, wanted = model(*inputs), output(theirs(*inputs))
    assert wanted.isfinite().all()
    assert _largest(wanted - wanted.mean(0)) > 1e-3 * _largest(wanted), "theirs tells no examples apart"
    _assert_close(y, wanted, "the scores")
    assert _count(fl.trainables(model)) == _count(theirs.parameters())
    return model


def _assert_same_step(
    model: Any, theirs: nn.Module, *inputs: Tensor, output: Callable[[Any], Tensor]
) -> None:
    """Hold a step of stochastic gradient descent, where norms train and nothing is dropped, to theirs.

    Theirs is unchanged.
    """
    model, buffers = _training_norms(model), {name: x.clone() for name, x in theirs.named_buffers()}
    _norms_train(theirs)
    wanted = _loss(output(theirs(*inputs)))
    wanted.backward()
    lr = 1 / max(float(_largest(x.grad)) for x in theirs.parameters() if x.grad is not None)
    state = theirs.state_dict(keep_vars=True)
    state = {name: x.detach() if x.grad is None else x.detach() - lr * x.grad for name, x in state.items()}
    theirs.zero_grad()
    trained = fl.models.load_weights(state, model)
    del state

    value, grads = fl.withgradient(lambda model: _loss(model(*inputs)), model)
    new, _ = fl.update(fl.setup(fl.Descent(lr), model), model, grads)
    _assert_close(value, wanted.detach(), "the loss")
    fl.fmap_with_path(lambda path, x, y: _assert_close(x, y, path), new, trained)

    theirs.eval()
    for name, x in theirs.named_buffers():
        x.copy_(buffers[name])


def _loss(scores: Tensor) -> Tensor:
    """Of some class for each example."""
    scores = scores.flatten(0, -2)
    return F.cross_entropy(scores, torch.arange(len(scores)) % scores.shape[-1])


def _with_statistics(module: nn.Module, *inputs: Tensor) -> nn.Module:
    """A module whose norms have statistics near those of the inputs.

    So a deep network still tells the inputs apart; and since they are not the very ones, a step of training
    moves them.
    """
    norms, generator = _norms_train(module), torch.Generator().manual_seed(1)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    with torch.no_grad():
        if norms:
            module(*inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            mean, var = norm.running_mean, norm.running_var
            norm.momentum = momentum
            mean.add_(_drawn(mean, -0.2, 0.2, generator) * var.sqrt())
            var.mul_(_drawn(var, 0.8, 1.2, generator))
    return module.eval()


def _norms_train(module: nn.Module) -> list[Any]:
    """Set norms, and nothing else, to training, which sets all dropout to none; the norms."""
    norms = [x for x in module.eval().modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
    return norms


def _training_norms(model: Any) -> Any:
    """A model of ours of which norms alone train."""

    def is_norm(x: Any) -> bool:
        return isinstance(x, fl.BatchNorm)

    return fl.fmap(lambda x: fl.automode(x) if is_norm(x) else x, fl.testmode(model), is_leaf=is_norm)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(x.numel() for x in parameters)


def _drawn(x: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, dtype=x.dtype) * (high - low) + low


def _largest(x: Tensor) -> Tensor:
    return x.abs().max()


def _assert_close(x: Tensor, wanted: Tensor, what: str) -> None:
    assert x.shape == wanted.shape, what
    if wanted.numel():
        far = float(_largest(x - wanted) / _largest(wanted).clamp(min=1e-300))
        assert far <= 1e-9, f"{what}: {far:.1e} of the largest number apart"
