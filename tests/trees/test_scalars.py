"""Which floats of a class are inputs: `functor(scalars=…)`, and what rules say without it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

import fluxlike as fl
from fluxlike.optimisers.rule import is_rule
from fluxlike.trees.functor import spec_of
from fluxlike.trees.structure import flatten, structure_of


def scalar_paths(tree: Any) -> list[str]:
    """The paths of the floats that are scalars."""
    leaves, treedef = flatten(tree)
    structure = structure_of(treedef)
    places = zip(structure.paths, leaves, structure.scalar, strict=True)
    return [path for path, x, scalar in places if scalar and type(x) is float]


class Pair(NamedTuple):
    low: float
    high: float


@fl.functor(scalars=("rate", "pair", "table"))
class Tempered:
    def __init__(self, rate: Any = 0.5, pair: Any = (0.1, 0.2), table: Any = 0.0) -> None:
        self.rate, self.pair, self.table = rate, pair, table
        self.other = 3.0


class Inherited(Tempered):
    pass


@fl.functor
class Plain:
    def __init__(self, x: Any) -> None:
        self.x = x


def test_a_declared_float_is_a_scalar_and_another_is_not() -> None:
    assert scalar_paths(Tempered()) == [".rate", ".pair[0]", ".pair[1]", ".table"]


def test_floats_in_containers_below_a_declared_child_are_scalars() -> None:
    tree = Tempered(rate=[0.1], pair=Pair(0.1, 0.2), table={"a": 0.3, "b": {"c": (0.4,)}})
    assert scalar_paths(tree) == [
        ".rate[0]", ".pair.low", ".pair.high", ".table['a']", ".table['b']['c'][0]",
    ]  # fmt: skip


def test_an_object_of_another_class_below_says_itself_what_its_scalars_are() -> None:
    assert scalar_paths(Tempered(rate=Plain(0.5), pair=(), table=Tempered())) == [
        ".table.rate", ".table.pair[0]", ".table.pair[1]", ".table.table",
    ]  # fmt: skip
    assert scalar_paths(Plain(Tempered(pair=(), table=None))) == [".x.rate"]


def test_a_subclass_inherits_the_scalars() -> None:
    assert scalar_paths([Inherited()]) == ["[0].rate", "[0].pair[0]", "[0].pair[1]", "[0].table"]


def test_scalars_of_one_name_are_told_from_those_of_another_class_or_attribute() -> None:
    leaves, treedef = flatten((Tempered(), Tempered(), Inherited(), 1.0))
    names = structure_of(treedef).scalar_names
    named = [n for n in names if n is not None]
    assert len(named) == 12
    assert named[:4] == named[4:8]
    assert len(set(named)) == 8
    assert names[-1] is None
    assert len(leaves) == len(names)


@pytest.mark.parametrize("register", [fl.functor, lambda cls, **how: fl.functor(**how)(cls)])
def test_a_name_that_the_class_does_not_have_is_an_error(register: Any) -> None:
    @dataclass
    class Typo:
        rate: float

    with pytest.raises(
        ValueError, match=r"Typo\): scalars= names 'rat', which is not among its attributes: rate"
    ):
        register(Typo, scalars=("rat",))


def test_a_name_that_is_no_child_is_an_error() -> None:
    class Chosen:
        pass

    with pytest.raises(ValueError, match="scalars= names 'rate', which is not among its children=: weight"):
        fl.functor(Chosen, children=("weight",), scalars=("rate",))


def test_a_name_that_an_object_lacks_is_an_error_at_its_first_use() -> None:
    @fl.functor(scalars=("rate",))
    class Empty:
        pass

    with pytest.raises(
        ValueError, match=r"Empty\): scalars= names 'rate', which is not among the attributes"
    ):
        flatten(Empty())


def test_one_string_is_an_error_that_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"scalars='rate' is one string; write scalars=\('rate',\)"):
        fl.functor(type("One", (), {}), scalars="rate")


def test_registering_with_other_scalars_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"scalars=\('rate', 'pair', 'table'\)"):
        fl.functor(Tempered, scalars=("rate",))


# Rules

RULES = [
    getattr(fl, name)
    for name in fl.__all__
    if isinstance(getattr(fl, name), type)
    and dataclasses.is_dataclass(getattr(fl, name))
    and callable(getattr(getattr(fl, name), "apply", None))
]


def test_there_are_rules_to_look_at() -> None:
    assert len(RULES) > 25


@pytest.mark.parametrize("cls", RULES)
def test_every_hyperparameter_of_a_rule_that_may_be_a_tensor_is_a_scalar(cls: type) -> None:
    spec = spec_of(cls)
    assert spec is not None
    may_be_tensors = {f.name for f in dataclasses.fields(cls) if "Hyper" in str(f.type)}
    left_out = {"momentum"} if cls is fl.RMSProp else set()  # it decides what the state holds
    assert set(spec.scalars) == may_be_tensors - left_out


def test_the_hyperparameters_inside_wrappers_are_scalars_and_schedules_are_not() -> None:
    rule = fl.EMA(
        fl.OptimiserChain(
            fl.ClipGlobalNorm(1.0, 3.0),
            fl.AccumGrad(2),
            fl.Scheduled(fl.AdamW(weight_decay=0.1, couple=False), lr=fl.schedules.Exp(0.1, 0.5), eps=1e-3),
        )
    )
    assert is_rule(rule)
    assert scalar_paths(rule) == [
        ".rule.rules[0].max_norm",
        ".rule.rules[2].rule.lr",
        ".rule.rules[2].rule.betas[0]",
        ".rule.rules[2].rule.betas[1]",
        ".rule.rules[2].rule.eps",
        ".rule.rules[2].rule.weight_decay",
        ".decay",
    ]


def test_the_state_of_an_optimiser_holds_scalars() -> None:
    state = fl.setup(fl.Momentum(0.1), {"w": torch.ones(2)})
    assert scalar_paths(state) == ["['w'].rule.lr", "['w'].rule.momentum"]


HALVING = fl.schedules.Exp(0.1, 0.5)


def own_rule(register: Any = None) -> type:
    @dataclass(frozen=True)
    class Own:
        lr: float = 0.1
        pair: tuple[float, float] = (0.5, 0.6)
        n: int = 3
        nesterov: bool = False
        schedule: Any = HALVING

        def init(self, param: Any) -> None:
            return None

        def apply(self, state: Any, param: Any, grad: Any) -> Any:
            return state, self.lr * grad

    return Own if register is None else register(Own)


@pytest.mark.parametrize("register", [None, fl.functor])
def test_every_float_of_a_users_own_rule_is_a_scalar(register: Any) -> None:
    assert scalar_paths(own_rule(register)()) == [".lr", ".pair[0]", ".pair[1]"]


def test_a_users_own_rule_may_say_which() -> None:
    assert scalar_paths(own_rule(fl.functor(scalars=("pair",)))()) == [".pair[0]", ".pair[1]"]
    assert scalar_paths(own_rule(fl.functor(scalars=()))()) == []
    assert scalar_paths(own_rule(fl.functor(children=("lr",)))()) == [".lr"]


def test_a_dataclass_that_is_no_rule_has_no_scalars() -> None:
    @dataclass
    class Config:
        rate: float = 0.1

    assert scalar_paths(Config()) == []
