"""Containers that torch's own pytrees know are nodes of trees too, without being registered here."""

from __future__ import annotations

import threading
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

import fluxlike as fl


def known(**steps: Any):
    """Tell torch's pytrees of a class, as its author would."""

    def tell(cls):
        _pytree.register_pytree_node(cls, cls.open, cls.close, **steps)
        return cls

    return tell


@dataclass
class Output(OrderedDict):
    """As the outputs of transformers are: a dict that is a dataclass, without the entries that are None."""

    loss: Any = None
    logits: Any = None
    states: Any = None

    def __post_init__(self):
        for name in ("loss", "logits", "states"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)

    def update(self, *_):
        raise TypeError("an output can't be updated")


_pytree.register_pytree_node(
    Output,
    lambda out: (list(out.values()), list(out.keys())),
    lambda values, names: Output(**dict(zip(names, values, strict=True))),
    flatten_with_keys_fn=lambda out: ([(_pytree.MappingKey(k), v) for k, v in out.items()], list(out.keys())),
)


@known(
    flatten_with_keys_fn=lambda c: (
        [(_pytree.GetAttrKey("keys"), c.keys), (_pytree.GetAttrKey("values"), c.values)],
        c.length,
    )
)
class Cache:
    def __init__(self, keys, values, length):
        self.keys, self.values, self.length = keys, values, length

    def open(self):
        return [self.keys, self.values], self.length

    @staticmethod
    def close(children, length):
        return Cache(*children, length)


@known()
class Pair:
    """One whose author does not say how its children are called."""

    def __init__(self, *both):
        self.both = both

    def open(self):
        return list(self.both), None

    @staticmethod
    def close(children, _):
        return Pair(*children)


@pytest.fixture
def output():
    return Output(loss=torch.tensor(1.0), states=(torch.ones(2), torch.zeros(3)))


def paths(tree) -> list[str]:
    found: list[str] = []
    fl.fmap_with_path(lambda path, x: found.append(path), tree, leaves="all")
    return found


def test_they_are_mapped_and_rebuilt_as_their_class(output):
    doubled = fl.fmap(lambda x: 2 * x, output)
    assert type(doubled) is Output
    assert doubled.loss == 2
    assert doubled["states"][0].tolist() == [2, 2]
    assert doubled.logits is None
    assert list(doubled) == ["loss", "states"]


def test_their_children_have_the_paths_that_the_author_gives(output):
    assert paths(output) == ["['loss']", "['states'][0]", "['states'][1]"]
    assert paths([Cache(torch.ones(1), None, 4)]) == ["[0].keys", "[0].values"]
    assert paths(Pair(1.0, torch.ones(2))) == ["[0]", "[1]"]


def test_places_in_them_are_found_by_path_and_by_function(output):
    assert fl.at(output, "['states'][1]").get().shape == (3,)
    assert fl.at(output, '["loss"]').set(3.0).loss == 3.0
    cache = Cache(torch.ones(1), torch.ones(2), 4)
    changed = fl.at(cache, lambda c: c.values).apply(lambda x: x + 1)
    assert (changed.values.tolist(), changed.length, cache.values.tolist()) == ([2, 2], 4, [1, 1])


def test_what_the_author_keeps_beside_the_children_is_part_of_the_structure():
    one, other = Cache(torch.ones(1), None, 4), Cache(torch.ones(1), None, 5)
    assert fl.tree.add(one, one).length == 4
    with pytest.raises(ValueError, match="differ in structure"):
        fl.tree.add({"cache": one}, {"cache": Output(loss=1.0)})
    assert fl.tree.add(one, other).length == 4  # as any attribute that rides along may differ


@pytest.mark.usefixtures("uncompiled")
def test_a_function_may_return_one_from_every_transform():
    def f(w: Tensor) -> Output:
        return Output(loss=(w**2).sum(), logits=3 * w, states=(w + 1,))

    w = torch.tensor([1.0, 2.0])
    value, grad = fl.withgradient(f, w)
    assert type(value) is Output
    assert not value.logits.requires_grad
    assert grad.tolist() == [2, 4]
    assert type(fl.jit(f)(w)) is Output
    assert fl.vmap(f)(torch.eye(2)).states[0].shape == (2, 2)
    out, back = fl.pullback(lambda w: Cache(2 * w, w.sum(), 7), w)
    assert out.length == 7
    assert back(Cache(torch.ones(2), torch.tensor(1.0), 7)).tolist() == [3, 3]


@pytest.mark.usefixtures("uncompiled")
def test_they_are_arguments_of_transforms_too(output):
    grads = fl.gradient(lambda o: (o.loss * o.states[0]).sum(), output)
    assert type(grads) is Output
    assert grads.loss == 2
    assert grads.states[1] is None
    assert fl.jit(lambda c: c.keys * c.length)(Cache(torch.ones(2), None, 3)).tolist() == [3, 3]


def test_ties_and_files_hold(output, tmp_path):
    x = torch.ones(2)
    tied = fl.f64(Output(loss=x, states=(x, Pair(x, None))))
    assert tied.loss is tied.states[0] is tied.states[1].both[0]
    assert tied.loss.dtype == torch.float64
    fl.save(tmp_path / "output.safetensors", output)
    loaded = fl.load(tmp_path / "output.safetensors", like=fl.tree.zeros_like(output))
    assert fl.tree.allclose(loaded, output)


def test_what_said_that_it_is_a_leaf_a_constant_or_a_functor_stays_that():
    @fl.leaf
    class Whole(Pair):
        pass

    _pytree.register_pytree_node(Whole, Pair.open, lambda c, _: Whole(*c))
    assert fl.children(Whole(torch.ones(1), 2)) == {}

    @dataclass(frozen=True)
    class Setting:
        name: str

    _pytree.register_constant(Setting)
    assert fl.fmap(lambda x: x, [Setting("a")], leaves="all") == [Setting("a")]

    @dataclass
    class Registered:
        w: Any
        name: Any

    _pytree.register_dataclass(Registered, field_names=["w"], drop_field_names=["name"])
    kept = fl.fmap(lambda x: 2 * x, Registered(torch.ones(1), "n"))
    assert (kept.w.item(), kept.name) == (2, "n")


def test_a_size_and_an_assigned_buffer_are_leaves():
    tree = [torch.Size([1, 2]), fl.Assigned(torch.ones(1)), UserDict()]
    assert fl.fmap(lambda x: x, tree, leaves="all") == tree


def test_one_that_nobody_knows_is_still_refused():
    class Unknown:
        def __init__(self):
            self.w = torch.ones(1)

    with pytest.raises(TypeError, match="not registered and holds a tensor"):
        fl.fmap(lambda x: x, [Unknown()])


def test_threads_that_see_a_class_first_at_one_time_agree():
    for _ in range(20):
        kind = type("Fresh", (Pair,), {})
        _pytree.register_pytree_node(kind, Pair.open, lambda c, _, kind=kind: kind(*c))
        start, results = threading.Barrier(4), []

        def run(kind=kind, start=start, results=results):
            start.wait()
            results.append(fl.fmap(lambda x: x + 1, kind(torch.ones(1), torch.ones(1))).both[1].item())

        threads = [threading.Thread(target=run) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert results == [2.0] * 4
