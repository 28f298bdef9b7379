"""Text from a language model, token by token."""

from __future__ import annotations

from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.checks import refuse_input
from fluxlike.random import uniform
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import seeded
from fluxlike.trees.fmap import fmap

__all__ = ["LanguageModel", "generate"]


class LanguageModel(Protocol):
    """What `generate` asks of a model: logits of the next token, and caches of those so far.

    A model that takes a number of tokens at most may say so by an attribute `context`, for an error before
    anything is computed.
    """

    def __call__(self, tokens: Tensor, caches: Any, /) -> tuple[Tensor, Any]:
        """Logits (N, L, vocabulary) for tokens (N, L) that go on from caches, and the new caches."""

    def caches(self, batch: int, max_len: int, /) -> Any:
        """Empty caches; the longer they may get, the longer some of their tensors are."""


def generate(
    model: LanguageModel,
    tokens: Tensor,
    n: int,
    /,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    stop: int | None = None,
    key: Key | None = None,
) -> Tensor:
    """Texts, each longer by tokens that are drawn one after another as the model says.

    Each step computes the new token alone; keys and values of those before are in caches, whose memory is
    doubled when it is full, since each step writes it anew. Tokens are drawn by the largest of the logits
    with Gumbel noise (Maddison et al. 2014, arXiv 1411.0030).

    Args:
        model: a language model such as `GPT`.
        tokens: how the texts begin, integers (N, L), L at least 1.
        n: how many tokens to add.
        temperature: divides the logits: below 1, likely tokens become likelier; at 0, the likeliest is
            always taken. (default: 1)
        top_k: among how many of the likeliest tokens is drawn (Fan et al. 2018, arXiv 1805.04833).
            (default: None, all)
        stop: a token that ends a text; what follows it is `stop` again, until all texts have ended or have
            `n` more tokens. (default: None)
        key: of the draws. (default: None, as the scope has it)

    Returns:
        The texts with the tokens added, (N, L + n), or fewer where `stop` ends all.

    Raises:
        TypeError: a model without caches, or an argument of another type.
        ValueError: a negative `n` or `temperature`, `top_k` below 1, no token to begin with, or more tokens
            than the model's context; the last one drawn needs no place in it.

    Example:
        >>> import torch, fluxlike as fl
        >>> config = fl.models.GPTConfig(depth=2, dim=16, num_heads=2, vocabulary=65, context=32)
        >>> model = fl.models.GPT(config)
        >>> start = torch.tensor([[1, 2, 3]])
        >>> texts = fl.models.generate(model, start, 5, temperature=0.8, top_k=10, key=fl.Key(0))
        >>> texts.shape
        torch.Size([1, 8])
    """
    _require_model(model)
    _require_arguments(tokens, n, temperature, top_k, stop)
    if not n:
        return tokens
    with torch.no_grad(), nullcontext() if key is None else seeded(key):
        batch, length = tokens.shape
        most = length + n - 1
        _require_context(model, length, n)
        model.caches(0, most)  # takes no memory, and refuses what is too long before anything is computed
        size = min(most, max(length, _FIRST))
        caches, texts, ended = model.caches(batch, size), [tokens], None
        for held in range(length, length + n):
            if held > size:
                size = min(most, 2 * size)
                caches = fmap(_enlarged, caches, model.caches(batch, size))
            logits, caches = model(texts[-1], caches)
            new = _next(logits[:, -1], temperature, top_k).to(tokens.dtype)
            if stop is not None:
                new = new if ended is None else new.masked_fill(ended, stop)
                ended = new == stop
            texts.append(new)
            if ended is not None and ended.all():
                break
    return torch.cat(texts, 1)


#: For how many tokens caches have memory at first.
_FIRST = 64


def _enlarged(x: Tensor, longer: Tensor) -> Tensor:
    """A tensor of a cache, in the shape that it has in a longer one."""
    more = (n for a, b in zip(reversed(x.shape), reversed(longer.shape), strict=True) for n in (0, b - a))
    return F.pad(x, (*more,)) if x.shape != longer.shape else x


def _next(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """A token for each row of logits (N, vocabulary): (N, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    among = None
    if top_k is not None:
        logits, among = logits.topk(min(top_k, logits.shape[-1]))
    logits = logits.float() / temperature
    noise = -(-uniform(logits.shape, dtype=logits.dtype, device=logits.device).log()).log()
    drawn = (logits + noise).argmax(-1, keepdim=True)
    return drawn if among is None else among.gather(-1, drawn)


def _require_model(model: Any) -> None:
    if not callable(model) or not callable(getattr(model, "caches", None)):
        raise TypeError(
            f"generate takes a language model with caches, such as a GPT, found {type(model).__name__}; what "
            "it asks of one is in LanguageModel"
        )


def _require_context(model: Any, length: int, n: int) -> None:
    """Refuse a text that grows beyond what the model takes at once; the last token is not given to it."""
    context = getattr(model, "context", None)
    if not isinstance(context, int) or length + n - 1 <= context:
        return
    fewer = context + 1 - length
    ways = [f"n={fewer} at most"] if fewer > 0 else []
    ways += [f"tokens[:, -{context + 1 - n}:] to begin with the last of them alone"] if n <= context else []
    raise ValueError(
        f"generate(n={n}) after {length} tokens asks for a text of {length + n}, and this "
        f"{type(model).__name__} has a context of {context}, so that its texts end at {context + 1}; write "
        + (", or ".join(ways) or f"n={context} at most, after tokens[:, -1:]")
    )


def _require_arguments(
    tokens: Tensor, n: int, temperature: float, top_k: int | None, stop: int | None
) -> None:
    for name, value, kind, wanted in (
        ("n", n, Integral, "an integer"),
        ("temperature", temperature, Real, "a number"),
        ("top_k", top_k, Integral, "an integer, or None for all tokens"),
        ("stop", stop, Integral, "the number of a token, or None for no end"),
    ):
        if not isinstance(value, kind) and (value is not None or name in ("n", "temperature")):
            raise TypeError(f"generate({name}={value!r}): write {wanted}")
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not tokens.shape[1]:
        refuse_input("generate", tokens, "(N, L), tokens with L at least 1")
    if n < 0:
        raise ValueError(f"generate(n={n}): write how many tokens to add, at least 0")
    if not temperature >= 0:
        raise ValueError(f"generate(temperature={temperature}): write 0 for the likeliest token, or above")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate(top_k={top_k}): write at least 1, or None for all tokens")
