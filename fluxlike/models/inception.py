"""Inception networks from tables: what follows in a row, and what lies beside and is joined over channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeGuard, cast

from torch import Tensor

from fluxlike.layers.activations import relu
from fluxlike.layers.basic import Activation
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.parallel import Parallel
from fluxlike.layers.pool import MaxPool, MeanPool
from fluxlike.models.blocks import concatenated, conv_norm, depth_rates
from fluxlike.models.classifier import Classifier, pooled_classifier
from fluxlike.models.configurations import require_counts
from fluxlike.models.origins import Origin
from fluxlike.models.residual import Residual
from fluxlike.trees.functor import functor

__all__ = ["InceptionConfig", "Pool", "ScaledResidual", "Table", "Times", "Unit", "inception"]


@dataclass(frozen=True)
class Unit:
    """A convolution, its norm and a relu.

    Attributes:
        channels: of the output.
        kernel: one number for a square, or height and width. (default: 1)
        stride: step of the kernel. (default: 1)
        pad: what is added at both ends of each axis. (default: half the kernel, so that at stride 1 the size
            stays)

    Raises:
        ValueError: a number that is none.

    Example:
        >>> import fluxlike as fl
        >>> config = fl.models.InceptionConfig({"conv": fl.models.Unit(8, (1, 7), stride=2)})
        >>> fl.models.InceptionV3(config, nclasses=10).backbone["conv"]["conv"]
        Conv((1, 7), 3, 8, stride=2, pad=(0, 3), bias=False)  # 168 parameters
    """

    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    pad: int | None = None

    def __post_init__(self) -> None:
        require_counts("Unit", channels=self.channels, stride=self.stride)
        shape = (2,) if isinstance(self.kernel, tuple) else ()
        require_counts("Unit", shape=shape, kernel=self.kernel)
        require_counts("Unit", least=0, pad=0 if self.pad is None else self.pad)


@dataclass(frozen=True)
class Pool:
    """A pool, which keeps the number of channels.

    Attributes:
        kind: "max" or "mean"; the mean of a window at the border is of the pixels of the image alone.
        window: height and width of what is pooled.
        stride: step of the window. (default: 1)
        pad: what is added at both ends of each axis. (default: 0)
        ceil: whether sizes are rounded up. (default: False)
        count_pad: whether a mean counts what is added as zeros. (default: False)

    Raises:
        ValueError: another kind, or a number that is none.

    Example:
        >>> import fluxlike as fl
        >>> config = fl.models.InceptionConfig({"pool": fl.models.Pool("max", 3, stride=2)})
        >>> fl.models.GoogLeNet(config, nclasses=10).backbone["pool"]
        MaxPool((3, 3), stride=2)
    """

    kind: str
    window: int
    stride: int = 1
    pad: int = 0
    ceil: bool = False
    count_pad: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("max", "mean"):
            raise ValueError(f'Pool(kind={self.kind!r}): write "max" or "mean"')
        require_counts("Pool", window=self.window, stride=self.stride)
        require_counts("Pool", least=0, pad=self.pad)


@dataclass(frozen=True)
class ScaledResidual:
    """Branches, their channels mixed by a convolution of one tap, scaled and added to what came in.

    Attributes:
        branches: tables by name.
        scale: by what the sum's new part is multiplied.
        activation: any callable, of the sum. (default: relu)

    Example:
        >>> import fluxlike as fl
        >>> branches = {"one": fl.models.Unit(4), "three": (fl.models.Unit(4), fl.models.Unit(6, 3))}
        >>> config = fl.models.InceptionConfig({"block": fl.models.ScaledResidual(branches, scale=0.2)})
        >>> fl.models.InceptionResNetV2(config, nclasses=10).backbone["block"].branch.names
        ('mixed', 'conv', 'scale')
    """

    branches: Named
    scale: float
    activation: Activation = relu

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", _pairs(self.branches))


#: A part of a network as data. A tuple of tables is a row. A dict, or the tuple of its pairs of a name and a
#: table, lies beside one another and is joined over channels.
Table: TypeAlias = "Unit | Pool | ScaledResidual | tuple[Table, ...] | Named"
Named: TypeAlias = "Mapping[str, Table] | tuple[tuple[str, Table], ...]"


@dataclass(frozen=True, repr=False)
class InceptionConfig:
    """What an inception network is made of.

    Dicts become tuples of pairs, so that a configuration is data that can be compared and hashed.

    Attributes:
        steps: tables by name, one after another: the steps of the backbone.
        family: the network that is published with these tables; "" for tables of one's own. (default: "")

    Raises:
        TypeError: a part that is no table, such as a layer.
        ValueError: a part without any.

    Example:
        >>> from fluxlike.models.googlenet import GOOGLENET
        >>> GOOGLENET
        InceptionConfig of GoogLeNet, 16 steps
    """

    steps: Named
    family: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _pairs(self.steps))

    def __repr__(self) -> str:
        if self.family:
            return f"InceptionConfig of {self.family}, {len(self.steps)} steps"
        return f"InceptionConfig({self.steps!r})"


def _pairs(named: Named) -> tuple[tuple[str, Table], ...]:
    """Names and tables, with no dict left in them."""
    pairs = tuple(named.items()) if isinstance(named, Mapping) else named
    if pairs == ():
        raise ValueError(f"a part of an inception network takes at least one layer, found {named!r}")
    if not _is_named(pairs):
        raise TypeError(f"a part of an inception network takes a dict of tables by name, found {named!r}")
    return tuple((name, _frozen(table)) for name, table in pairs)


def _is_named(table: Any) -> TypeGuard[tuple[tuple[str, Table], ...]]:
    """Whether it is a tuple of pairs of a name and a table."""
    return isinstance(table, tuple) and all(
        isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str) for part in table
    )


def _is_row(table: Any) -> TypeGuard[tuple[Table, ...]]:
    """Whether it is a tuple of tables that follow one another."""
    return isinstance(table, tuple) and not (table and _is_named(table))


def _frozen(table: Table) -> Table:
    """A table with no dict left in it."""
    if isinstance(table, (Unit, Pool, ScaledResidual)):
        return table
    if _is_row(table) and table:
        return tuple(map(_frozen, table))
    if table == () or isinstance(table, Mapping) or _is_named(table):
        return _pairs(table)
    raise TypeError(
        f"a table of an inception network is made of Unit, Pool, ScaledResidual, tuples and dicts, found "
        f"{table!r}; layers would be shared by the models: write what they are made of, such as "
        'Pool("max", 3, stride=2)'
    )


@functor(children=())
class Times:
    """A multiplication by a number that is not trained.

    Attributes:
        factor: the number.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor}"


def inception(
    family: str,
    config: InceptionConfig,
    *,
    inchannels: int,
    nclasses: int,
    dropout: float,
    drop_path: float = 0.0,
    origins: tuple[Origin, ...],
) -> Classifier:
    """An inception network with its classifier.

    Args:
        family: the model's name, for the error.
        config: the tables.
        inchannels: channels of the images.
        nclasses: how many classes.
        dropout: the probability with which a feature is dropped before the last layer.
        drop_path: the probability with which an example goes around the last `ScaledResidual`. (default: 0)
        origins: the libraries whose weights fit.

    Raises:
        TypeError: `config` is no InceptionConfig.
        ValueError: it is that of another published network.

    Example:
        >>> import torch
        >>> block = {"one": Unit(4), "three": (Unit(2), Unit(8, 3)), "pool": Pool("max", 3, pad=1)}
        >>> config = InceptionConfig({"stem": Unit(6, 3, stride=2), "block": block})
        >>> model = inception("Mine", config, inchannels=3, nclasses=10, dropout=0.0, origins=())
        >>> model.backbone(torch.zeros(1, 3, 8, 8)).shape  # 4 + 8 + 6 channels
        torch.Size([1, 18, 4, 4])
    """
    if not isinstance(config, InceptionConfig):
        raise TypeError(
            f"{family} takes an InceptionConfig, found {config!r}; write {family}() for the published network"
        )
    if config.family not in ("", family):
        raise ValueError(
            f"{family} takes tables of its own or of one's own, found those of {config.family}; write "
            f"{config.family}()"
        )
    require_counts(family, inchannels=inchannels, nclasses=nclasses)
    tables = _pairs(config.steps)
    rates = iter(depth_rates(drop_path, sum(_residuals(table) for _, table in tables)))
    steps, channels = {}, inchannels
    for name, table in tables:
        steps[name], channels = _built(table, channels, rates)
    return Classifier(Chain(**steps), pooled_classifier(channels, nclasses, dropout), origins=origins)


def _residuals(table: Table) -> int:
    """How many residual blocks there are."""
    if _is_row(table):
        return sum(map(_residuals, table))
    if _is_named(table):
        return sum(_residuals(branch) for _, branch in table)
    return isinstance(table, ScaledResidual)


def _built(table: Table, inputs: int, rates: Iterator[float]) -> tuple[Any, int]:
    """The layers of a table, and the number of channels that they give."""
    if isinstance(table, Unit):
        return _unit(table, inputs), table.channels
    if isinstance(table, Pool):
        return _pool(table), inputs
    if isinstance(table, ScaledResidual):
        return _residual(table, inputs, rates), inputs
    if _is_row(table):
        return _row(table, inputs, rates)
    built = {name: _built(branch, inputs, rates) for name, branch in _pairs(cast("Named", table))}
    layers = {name: layer for name, (layer, _) in built.items()}
    return Parallel(concatenated, **layers), sum(channels for _, channels in built.values())


def _unit(unit: Unit, inputs: int) -> Chain:
    norm = partial(BatchNorm, eps=1e-3)
    return conv_norm(unit.kernel, inputs, unit.channels, stride=unit.stride, pad=unit.pad, norm=norm)


def _pool(pool: Pool) -> MaxPool | MeanPool:
    window = (pool.window, pool.window)
    if pool.kind == "max":
        return MaxPool(window, stride=pool.stride, pad=pool.pad, ceil_mode=pool.ceil)
    return MeanPool(
        window, stride=pool.stride, pad=pool.pad, ceil_mode=pool.ceil, count_include_pad=pool.count_pad
    )


def _residual(table: ScaledResidual, inputs: int, rates: Iterator[float]) -> Residual:
    mixed, channels = _built(table.branches, inputs, rates)
    branch = Chain(mixed=mixed, conv=Conv((1, 1), channels, inputs), scale=Times(table.scale))
    return Residual(branch, activation=table.activation, drop_path=next(rates))


def _row(tables: tuple[Table, ...], inputs: int, rates: Iterator[float]) -> tuple[Chain, int]:
    """A Chain whose steps are called what they are, and numbered: conv1, conv2, pool1, fork1, block1."""
    steps, seen = {}, Counter[str]()
    for table in tables:
        kind = _kind(table)
        seen[kind] += 1
        steps[f"{kind}{seen[kind]}"], inputs = _built(table, inputs, rates)
    return Chain(**steps), inputs


def _kind(table: Table) -> str:
    kinds = {Unit: "conv", Pool: "pool", ScaledResidual: "block"}
    return kinds.get(type(table)) or ("row" if _is_row(table) else "fork")
