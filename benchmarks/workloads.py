"""Three small train steps, each written for fluxlike, for torch and for Equinox: an MLP, a CNN, a GPT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fluxlike as fl

WIDTH, HEADS, BLOCKS, LENGTH, VOCABULARY = 128, 4, 4, 64, 256


class Workload(NamedTuple):
    """A model of ours, the same for torch, and a batch.

    Attributes:
        model: fluxlike's.
        module: torch's.
        x: inputs.
        y: targets, indices of classes.
    """

    model: Any
    module: nn.Module
    x: Tensor
    y: Tensor


def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy; of sequences, of every token."""
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def mlp() -> Workload:
    """784-256-256-10 at batch 128."""
    model = fl.Chain(fl.Dense(784, 256, fl.relu), fl.Dense(256, 256, fl.relu), fl.Dense(256, 10))
    module = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return Workload(model, module, torch.randn(128, 784), torch.randint(0, 10, (128,)))


def cnn() -> Workload:
    """Three blocks of convolution, BatchNorm and pool, 16, 32 and 64 channels, on 64×3×32×32."""
    layers: list[Any] = []
    modules: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 64)):
        layers += [fl.Conv((3, 3), a, b, pad=1), fl.BatchNorm(b, fl.relu), fl.MaxPool((2, 2))]
        modules += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    model = fl.Chain(*layers, fl.flatten, fl.Dense(1024, 10))
    module = nn.Sequential(*modules, nn.Flatten(), nn.Linear(1024, 10))
    return Workload(model, module, torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,)))


def gpt() -> Workload:
    """Four blocks of width 128 with four heads, 64 tokens, batch 16, the embedding tied to the head."""
    x, y = (torch.randint(0, VOCABULARY, (16, LENGTH)) for _ in range(2))
    return Workload(GPT(), GPTModule(), x, y)


def attend(qkv: Tensor) -> Tensor:
    """Causal attention of (N, L, 3·width)."""
    n, length, _ = qkv.shape
    q, k, v = (t.view(n, length, HEADS, -1).transpose(1, 2) for t in qkv.split(WIDTH, -1))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(n, length, WIDTH)


@fl.functor
class Block:
    """Attention and a perceptron, each behind a LayerNorm and around itself."""

    def __init__(self) -> None:
        self.norm1, self.norm2 = fl.LayerNorm(WIDTH), fl.LayerNorm(WIDTH)
        self.qkv, self.proj = fl.Dense(WIDTH, 3 * WIDTH), fl.Dense(WIDTH, WIDTH)
        self.up, self.down = fl.Dense(WIDTH, 4 * WIDTH, fl.gelu), fl.Dense(4 * WIDTH, WIDTH)

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.proj(attend(self.qkv(self.norm1(x))))
        return x + self.down(self.up(self.norm2(x)))


@fl.functor
class GPT:
    """A small language model."""

    def __init__(self) -> None:
        self.tokens, self.positions = fl.Embedding(VOCABULARY, WIDTH), fl.Embedding(LENGTH, WIDTH)
        self.blocks = tuple(Block() for _ in range(BLOCKS))
        self.norm = fl.LayerNorm(WIDTH)
        self.head = self.tokens.weight

    def __call__(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.head)


class BlockModule(nn.Module):
    """`Block` for torch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(attend(self.qkv(self.norm1(x))))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPTModule(nn.Module):
    """`GPT` for torch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(BlockModule() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


WORKLOADS: dict[str, Callable[[], Workload]] = {"MLP": mlp, "CNN": cnn, "GPT": gpt}


def ours(work: Workload, compiled: bool = True) -> Callable[[], Tensor]:
    """One train step with Adam after another."""

    def step(model: Any, state: Any, x: Tensor, y: Tensor) -> tuple[Any, Any, Tensor]:
        value, grads = fl.withgradient(loss, model, x, y)
        return *fl.update(state, model, grads), value

    run = fl.jit(step, donate=("model", "state")) if compiled else step
    model = fl.tree.clone(work.model)
    state = fl.setup(fl.Adam(1e-3), model)

    def call() -> Tensor:
        nonlocal model, state
        model, state, value = run(model, state, work.x, work.y)
        return value

    return call


def torchs(work: Workload, compiled: bool = True) -> Callable[[], Tensor]:
    """The same with torch, by its fused optimiser."""
    module = work.module.train()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(loss) if compiled else loss

    def call() -> Tensor:
        optimiser.zero_grad()
        value = forward(module, work.x, work.y)
        value.backward()
        optimiser.step()
        return value

    return call


def equinoxs(name: str, work: Workload) -> Callable[[], Any]:
    """The same with Equinox and Optax, jitted with donation."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    key = jax.random.key(0)
    x, y = jnp.asarray(work.x.numpy()), jnp.asarray(work.y.numpy())

    def keys(n: int) -> Any:
        nonlocal key
        key, *found = jax.random.split(key, n + 1)
        return found

    stateful = None
    if name == "MLP":
        k = keys(1)[0]
        model: Any = eqx.nn.MLP(784, 10, 256, 2, jax.nn.relu, key=k)
        predict = lambda m, x, s: (jax.vmap(m)(x), s)  # noqa: E731
    elif name == "CNN":

        def build() -> Any:
            layers: list[Any] = []
            for a, b in ((3, 16), (16, 32), (32, 64)):
                layers += [
                    eqx.nn.Conv2d(a, b, 3, padding=1, key=keys(1)[0]),
                    eqx.nn.BatchNorm(b, "batch", mode="batch"),
                    eqx.nn.Lambda(jax.nn.relu),
                    eqx.nn.MaxPool2d(2, 2),
                ]
            layers += [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(1024, 10, key=keys(1)[0])]
            return eqx.nn.Sequential(layers)

        model, stateful = eqx.nn.make_with_state(build)()
        predict = lambda m, x, s: jax.vmap(m, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, s)  # noqa: E731
    else:
        model = _equinox_gpt(keys)
        predict = lambda m, x, s: (jax.vmap(m)(x), s)  # noqa: E731

    optimiser = optax.adam(1e-3)
    moments = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    def mean_loss(m: Any, s: Any, x: Any, y: Any) -> Any:
        logits, s = predict(m, x, s)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), s

    @eqx.filter_jit(donate="all-except-first")
    def step(batch: Any, m: Any, s: Any, o: Any) -> Any:
        (value, s), grads = eqx.filter_value_and_grad(mean_loss, has_aux=True)(m, s, *batch)
        moved, o = optimiser.update(grads, o)
        return eqx.apply_updates(m, moved), s, o, value

    def call() -> Any:
        nonlocal model, stateful, moments
        model, stateful, moments, value = step((x, y), model, stateful, moments)
        return value.block_until_ready()

    return call


def _equinox_gpt(keys: Callable[[int], Any]) -> Any:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    class JaxBlock(eqx.Module):
        norm1: Any
        norm2: Any
        qkv: Any
        proj: Any
        up: Any
        down: Any

        def __init__(self) -> None:
            self.norm1, self.norm2 = eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)
            a, b, c, d = keys(4)
            self.qkv = eqx.nn.Linear(WIDTH, 3 * WIDTH, key=a)
            self.proj = eqx.nn.Linear(WIDTH, WIDTH, key=b)
            self.up = eqx.nn.Linear(WIDTH, 4 * WIDTH, key=c)
            self.down = eqx.nn.Linear(4 * WIDTH, WIDTH, key=d)

        def __call__(self, x: Any) -> Any:
            heads = lambda t: t.reshape(len(x), HEADS, -1)  # noqa: E731
            q, k, v = map(heads, jnp.split(jax.vmap(self.qkv)(jax.vmap(self.norm1)(x)), 3, -1))
            out = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(len(x), WIDTH)
            x = x + jax.vmap(self.proj)(out)
            inner = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x)), approximate=False)
            return x + jax.vmap(self.down)(inner)

    class JaxGPT(eqx.Module):
        tokens: Any
        positions: Any
        blocks: Any
        norm: Any

        def __init__(self) -> None:
            a, b = keys(2)
            self.tokens = eqx.nn.Embedding(VOCABULARY, WIDTH, key=a)
            self.positions = eqx.nn.Embedding(LENGTH, WIDTH, key=b)
            self.blocks = [JaxBlock() for _ in range(BLOCKS)]
            self.norm = eqx.nn.LayerNorm(WIDTH)

        def __call__(self, tokens: Any) -> Any:
            x = jax.vmap(self.tokens)(tokens) + self.positions.weight[: len(tokens)]
            for block in self.blocks:
                x = block(x)
            return jax.vmap(self.norm)(x) @ self.tokens.weight.T  # the head is the embedding

    return JaxGPT()
