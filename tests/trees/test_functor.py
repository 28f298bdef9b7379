"""Registration: every kind of class can be a node, and what can't says so."""

import abc
import functools
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import attrs
import optree
import pytest
import torch

import fluxlike as fl

T = TypeVar("T")


def rebuilt(tree):
    return fl.fmap(lambda x: x, tree, leaves="all")


@fl.functor
class Plain:
    def __init__(self, w, b):
        self.w, self.b = w, b


@fl.functor
@dataclass
class Data:
    w: Any
    b: Any


@fl.functor
@dataclass(frozen=True)
class Frozen:
    w: Any
    b: Any


@fl.functor
@dataclass(slots=True)
class SlottedData:
    w: Any
    b: Any


@fl.functor
@dataclass(frozen=True, slots=True)
class FrozenSlottedData:
    w: Any
    b: Any


@fl.functor
class Slots:
    __slots__ = ("b", "w")

    def __init__(self, w, b):
        self.w, self.b = w, b


@fl.functor
@attrs.define(slots=False)
class Attrs:
    w: Any
    b: Any


@fl.functor
@attrs.define
class SlottedAttrs:
    w: Any
    b: Any


@fl.functor
@attrs.frozen
class FrozenAttrs:
    w: Any
    b: Any


class Inherited(Plain):
    pass


@fl.functor
class SlotsAndDict(Slots):
    def __init__(self, w, b):
        super().__init__(w, b)
        self.extra = torch.zeros(1)


@fl.functor
class Boxed(Generic[T]):
    def __init__(self, w: T, b: T):
        self.w, self.b = w, b


class Interface(abc.ABC):
    @abc.abstractmethod
    def __call__(self, x):
        """What a layer computes."""


@fl.functor
class Concrete(Interface):
    def __init__(self, w, b):
        self.w, self.b = w, b

    def __call__(self, x):
        return self.w * x


KINDS = [
    Plain,
    Data,
    Frozen,
    SlottedData,
    FrozenSlottedData,
    Slots,
    Attrs,
    SlottedAttrs,
    FrozenAttrs,
    Inherited,
    SlotsAndDict,
    Boxed,
    Concrete,
]


def test_a_dataclass_is_a_node_without_registration():
    @dataclass
    class Pair:
        first: Any
        second: Any

    grads = fl.gradient(lambda p: (p.first * 3).sum(), Pair(torch.ones(2), torch.ones(1)))
    assert isinstance(grads, Pair)
    assert grads.first.tolist() == [3, 3]
    assert grads.second is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_class_is_rebuilt_to_its_class_with_its_leaves(kind):
    w, b = torch.ones(2), "constant"
    node = kind(w, b)
    again = rebuilt(node)
    assert type(again) is kind
    assert again is not node
    assert again.w is w
    assert again.b is b


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_class_is_mapped_over(kind):
    doubled = fl.fmap(lambda x: 2 * x, kind(torch.ones(2), torch.ones(1)))
    assert doubled.w.tolist() == [2, 2]
    assert doubled.b.tolist() == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_class_is_differentiated(kind):
    node = kind(torch.ones(2), torch.ones(2))
    grads = fl.gradient(lambda m: (3 * m.w).sum(), node)
    assert type(grads) is kind
    assert grads.w.tolist() == [3, 3]
    assert grads.b is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_entries_known_to_optree_are_the_attributes(kind):
    node = kind(torch.ones(2), torch.ones(2))
    paths = optree.tree_paths(node, none_is_leaf=True, namespace="fluxlike")
    assert {("w",), ("b",)} <= set(paths)


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not Inherited])
def test_torch_func_takes_a_model_whose_leaves_are_all_tensors(kind):
    node = kind(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    grads = torch.func.grad(lambda m: (m.w * m.b).sum())(node)
    assert type(grads) is kind
    assert grads.w.tolist() == [3, 4]
    assert grads.b.tolist() == [1, 2]


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in (Inherited, SlotsAndDict)])
def test_torch_vmap_takes_a_model_whose_leaves_are_all_tensors(kind):
    node = kind(torch.arange(6.0).reshape(3, 2), torch.ones(3, 2))
    out = torch.vmap(lambda m: m.w.sum() + m.b.sum())(node)
    assert out.tolist() == [3, 7, 11]


def test_a_generic_class_has_no_children_but_its_attributes():
    assert list(fl.children(Boxed[int](1, 2))) == ["w", "b"]


def test_no_constructor_runs_on_rebuild():
    calls = []

    @fl.functor
    class Counted:
        def __new__(cls, *args):
            calls.append("new")
            return super().__new__(cls)

        def __init__(self, w, required):
            calls.append("init")
            self.w = w

    node = Counted(torch.ones(1), "required")
    calls.clear()
    rebuilt(node)
    assert calls == []


def test_no_post_init_runs_on_rebuild():
    calls = []

    @fl.functor
    @dataclass
    class Checked:
        w: Any

        def __post_init__(self):
            calls.append("post")

    @fl.functor
    @attrs.define
    class CheckedAttrs:
        w: Any

        def __attrs_post_init__(self):
            calls.append("attrs post")

    nodes = Checked(torch.ones(1)), CheckedAttrs(torch.ones(1))
    calls.clear()
    rebuilt(nodes)
    assert calls == []


def test_no_setattr_of_the_class_runs_on_rebuild():
    @fl.functor
    class Sealed:
        def __init__(self, w):
            self.__dict__["w"] = w

        def __setattr__(self, name, value):
            raise AttributeError("sealed")

    assert fl.f64(Sealed(torch.ones(1))).w.dtype == torch.float64


def test_a_cached_property_is_dropped_and_computed_anew():
    @fl.functor
    class Cached:
        def __init__(self, w):
            self.w = w

        @functools.cached_property
        def total(self):
            return self.w.sum()

    node = Cached(torch.ones(3))
    assert node.total == 3
    doubled = fl.fmap(lambda x: 2 * x, node)
    assert list(fl.children(node)) == ["w"]
    assert "total" not in vars(doubled)
    assert doubled.total == 6


def test_an_inherited_cached_property_is_dropped_too():
    class Base:
        @functools.cached_property
        def total(self):
            return self.w.sum()

    @fl.functor
    class Cached(Base):
        def __init__(self, w):
            self.w = w

    node = Cached(torch.ones(3))
    assert node.total == 3
    assert list(fl.children(node)) == ["w"]


def test_private_attributes_are_children():
    @fl.functor
    class Private:
        def __init__(self):
            self._w, self.__b = torch.ones(1), torch.ones(2)

    assert list(fl.children(Private())) == ["_w", "_Private__b"]


def test_private_slots_are_children():
    @fl.functor
    class PrivateSlots:
        __slots__ = ("__b", "_w")

        def __init__(self):
            self._w, self.__b = torch.ones(1), torch.ones(2)

    assert set(fl.children(PrivateSlots())) == {"_w", "_PrivateSlots__b"}
    assert len(fl.trainables(rebuilt(PrivateSlots()))) == 2


def test_a_slot_that_is_not_set_stays_unset():
    @fl.functor
    class Partial:
        __slots__ = ("b", "w")

    node = Partial()
    node.w = torch.ones(1)
    again = rebuilt(node)
    assert again.w is node.w
    assert not hasattr(again, "b")


def test_attributes_that_some_objects_lack_are_kept_as_each_has_them():
    @fl.functor
    class Optional:
        def __init__(self, **attributes):
            self.__dict__.update(attributes)

    short, long = Optional(w=1), Optional(w=1, b=2)
    assert vars(rebuilt(short)) == {"w": 1}
    assert vars(rebuilt(long)) == {"w": 1, "b": 2}


def test_the_order_in_which_attributes_were_set_is_no_part_of_the_structure():
    @fl.functor
    class Layer:
        def __init__(self, names):
            for name in names:
                setattr(self, name, torch.ones(1))

    one, two = Layer("ab"), Layer("ba")
    assert fl.tree.allclose(one, two)
    assert [path for path, _ in fl.trainables(two, paths=True)] == [".a", ".b"]


def test_a_class_without_attributes_is_an_empty_node():
    @fl.functor
    class Empty:
        pass

    assert fl.children(Empty()) == {}
    assert type(rebuilt(Empty())) is Empty


def test_fields_with_defaults_and_without_init_are_children():
    @fl.functor
    @dataclass
    class Fields:
        w: Any
        scale: Any = field(default=2.0, kw_only=True)
        made: Any = field(init=False)

        def __post_init__(self):
            self.made = torch.ones(1)

    assert list(fl.children(Fields(torch.ones(1)))) == ["w", "scale", "made"]


class TestOptions:
    def test_children_names_what_is_part_of_the_tree_and_the_rest_rides_along(self):
        @fl.functor(children=("w",))
        class Layer:
            def __init__(self):
                self.w, self.cache, self.name = torch.ones(1), torch.ones(5), "layer"

        layer = Layer()
        moved = fl.f64(layer)
        assert list(fl.children(layer)) == ["w"]
        assert moved.w.dtype == torch.float64
        assert moved.cache is layer.cache
        assert moved.name == "layer"

    def test_trainable_leaves_the_others_as_buffers(self):
        @fl.functor(trainable=("w",))
        class Layer:
            def __init__(self):
                self.w, self.mean = torch.ones(1), torch.ones(1)

        layer = Layer()
        assert fl.trainables(layer, paths=True) == [(".w", layer.w)]
        assert len(fl.fleaves(layer)) == 2

    def test_buffers_leaves_the_others_trainable(self):
        @fl.functor(buffers=("mean",))
        class Layer:
            def __init__(self):
                self.w, self.mean = torch.ones(1), torch.ones(1)

        assert [path for path, _ in fl.trainables(Layer(), paths=True)] == [".w"]

    def test_everything_below_a_buffer_is_a_buffer(self):
        @fl.functor(buffers=("frozen",))
        class Model:
            def __init__(self):
                self.frozen, self.head = fl.Dense(2, 2), fl.Dense(2, 1)

        assert [path for path, _ in fl.trainables(Model(), paths=True)] == [".head.weight", ".head.bias"]

    def test_an_empty_tuple_trains_nothing(self):
        @fl.functor(trainable=())
        class Layer:
            def __init__(self):
                self.w = torch.ones(1)

        assert fl.trainables(Layer()) == []

    def test_options_hold_for_slots(self):
        @fl.functor(children=("w", "mean"), buffers=("mean",))
        class Layer:
            __slots__ = ("mean", "stride", "w")

            def __init__(self):
                self.w, self.mean, self.stride = torch.ones(1), torch.ones(1), 2

        moved = fl.f64(Layer())
        assert moved.stride == 2
        assert moved.mean.dtype == torch.float64
        assert [path for path, _ in fl.trainables(moved, paths=True)] == [".w"]

    def test_options_hold_for_torch_too(self):
        @fl.functor(children=("w",))
        class Layer:
            def __init__(self):
                self.w, self.power = torch.ones(2), 2

        assert torch.func.grad(lambda m: (m.w**m.power).sum())(Layer()).w.tolist() == [2, 2]

    def test_a_class_that_is_not_yours_is_registered_by_a_plain_call(self):
        class Theirs:
            def __init__(self):
                self.w, self.mean = torch.ones(1), torch.ones(1)

        assert fl.functor(Theirs, trainable=("w",)) is Theirs
        assert [path for path, _ in fl.trainables(Theirs(), paths=True)] == [".w"]

    def test_registering_twice_alike_is_allowed(self):
        class Twice:
            pass

        assert fl.functor(fl.functor(Twice)) is Twice

    def test_a_list_of_names_is_as_good_as_a_tuple(self):
        class Twice:
            w = None

        fl.functor(Twice, children=["w"])
        assert fl.functor(Twice, children=("w",)) is Twice


class TestSubclasses:
    def test_a_subclass_is_registered_on_first_sight(self):
        class Child(Plain):
            def __init__(self):
                super().__init__(torch.ones(1), torch.ones(1))
                self.more = torch.ones(1)

        assert [path for path, _ in fl.trainables(Child(), paths=True)] == [".w", ".b", ".more"]

    def test_a_subclass_is_registered_on_first_sight_deep_in_a_tree(self):
        class Child(Plain):
            pass

        class Grandchild(Child):
            pass

        tree = {"a": [Child(Grandchild(torch.ones(1), 1), 2)]}
        assert rebuilt(tree)["a"][0].w.w is tree["a"][0].w.w

    def test_a_gradient_registers_a_subclass_on_first_sight(self):
        class Child(Plain):
            pass

        grads = fl.gradient(lambda m: m["layer"].w.sum(), {"layer": Child(torch.ones(2), None)})
        assert type(grads["layer"]) is Child
        assert grads["layer"].w.tolist() == [1, 1]

    def test_a_value_of_an_unseen_subclass_comes_back_whole(self):
        class Child(Plain):
            pass

        def f(x):
            loss = x.sum()
            return loss, Child(loss, 2 * loss)

        (_, aux), _ = fl.withgradient(f, torch.ones(2))
        assert type(aux) is Child
        assert not aux.w.requires_grad
        assert not aux.b.requires_grad

    def test_a_subclass_takes_the_options_of_its_parent(self):
        @fl.functor(buffers=("mean",))
        class Parent:
            def __init__(self):
                self.w, self.mean = torch.ones(1), torch.ones(1)

        class Child(Parent):
            pass

        assert [path for path, _ in fl.trainables(Child(), paths=True)] == [".w"]

    def test_a_tensor_that_a_subclass_adds_beside_the_children_of_its_parent_is_an_error(self):
        @fl.functor(children=("a",))
        class Parent:
            def __init__(self):
                self.a, self.size = torch.ones(1), 3

        class Child(Parent):
            def __init__(self):
                super().__init__()
                self.b = torch.ones(1)

        with pytest.raises(TypeError, match=r"Child\.b is a tensor, but not among children=\('a',\)"):
            fl.trainables(Child())

    def test_a_subclass_may_have_options_of_its_own(self):
        @fl.functor(trainable=("w",))
        class Child(Plain):
            pass

        assert [path for path, _ in fl.trainables(Child(torch.ones(1), torch.ones(1)), paths=True)] == [".w"]

    def test_a_subclass_that_was_used_can_not_be_registered_differently(self):
        class Child(Plain):
            pass

        fl.trainables(Child(torch.ones(1), 1))
        with pytest.raises(ValueError, match=r"Child is registered already.*subclass that was used before"):
            fl.functor(Child, trainable=("w",))

    def test_a_subclass_that_is_registered_while_its_tree_is_flattened_is_still_a_node(self):
        class Child(Plain):
            pass

        def register_late(x):
            if x == "last":  # by now the first item has been taken for a leaf
                fl.trainables(Child(torch.ones(1), 1))
            return False

        assert len(fl.fleaves([Child(torch.ones(1), 1), "last"], is_leaf=register_late)) == 1

    def test_several_threads_may_meet_a_subclass_at_the_same_time(self):
        children = [type(f"Child{i}", (Plain,), {}) for i in range(200)]
        errors = []
        barrier = threading.Barrier(4)

        def look():
            barrier.wait()
            try:
                for child in children:
                    fl.trainables(child(torch.ones(1), 1))
            except Exception as error:
                errors.append(error)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # threads take turns as often as they can
        try:
            threads = [threading.Thread(target=look) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert errors == []


class TestRegistrationErrors:
    def test_registering_twice_differently(self):
        @fl.functor(buffers=("mean",))
        class Layer:
            pass

        with pytest.raises(
            ValueError, match=r"registered already, as functor\(buffers=\('mean',\)\), and now"
        ):
            fl.functor(Layer, trainable=("w",))

    @pytest.mark.parametrize("option", ["children", "trainable", "buffers"])
    def test_a_name_that_the_fields_lack(self, option):
        @dataclass
        class Layer:
            w: Any

        with pytest.raises(ValueError, match=rf"{option}= names 'weight', which is not among.*: w"):
            fl.functor(Layer, **{option: ("weight",)})

    def test_a_name_that_the_slots_lack(self):
        class Layer:
            __slots__ = ("w",)

        with pytest.raises(ValueError, match=r"buffers= names 'mean', which is not among its attributes: w"):
            fl.functor(Layer, buffers=("mean",))

    def test_a_name_that_the_object_of_a_plain_class_lacks(self):
        @fl.functor(trainable=("weight",))
        class Layer:
            def __init__(self):
                self.w = torch.ones(1)

        with pytest.raises(ValueError, match=r"trainable= names 'weight'.*the attributes of this object: w"):
            fl.trainables(Layer())

    def test_a_buffer_that_is_not_among_the_children(self):
        class Layer:
            pass

        with pytest.raises(ValueError, match=r"buffers= names 'mean', which is not among its children=: w"):
            fl.functor(Layer, children=("w",), buffers=("mean",))

    def test_a_torch_module(self):
        with pytest.raises(TypeError, match=r"is a torch\.nn\.Module.*from_torch"):
            fl.functor(type("Net", (torch.nn.Module,), {}))

    @pytest.mark.parametrize("base", [dict, list, tuple, int, str, OrderedDict, Exception])
    def test_a_class_with_a_built_in_base(self, base):
        with pytest.raises(TypeError, match=rf"inherits from {base.__name__}, whose content is not in attr"):
            fl.functor(type("Mine", (base,), {}))

    def test_a_named_tuple_is_a_node_already(self):
        class Point(NamedTuple):
            x: Any

        with pytest.raises(TypeError, match="a named tuple is a node already"):
            fl.functor(Point)

    def test_a_tensor_class(self):
        with pytest.raises(TypeError, match="inherits from"):
            fl.functor(type("Mine", (torch.Tensor,), {}))

    def test_trainable_and_buffers_at_once(self):
        with pytest.raises(ValueError, match="give trainable= or buffers=, not both"):
            fl.functor(type("Layer", (), {}), trainable=("w",), buffers=("mean",))

    @pytest.mark.parametrize("option", ["children", "trainable", "buffers"])
    def test_a_string_instead_of_a_tuple(self, option):
        with pytest.raises(
            ValueError, match=rf"{option}='weight' is one string; write {option}=\('weight',\)"
        ):
            fl.functor(type("Layer", (), {}), **{option: "weight"})

    def test_an_object_instead_of_a_class(self):
        with pytest.raises(TypeError, match=r"functor takes a class, found .* write functor\(TheClass\)"):
            fl.functor(Plain(1, 2))

    def test_a_failed_registration_leaves_the_class_unregistered(self):
        class Layer:
            __slots__ = ("w",)

        with pytest.raises(ValueError, match="buffers= names 'mean'"):
            fl.functor(Layer, buffers=("mean",))
        assert fl.functor(Layer, buffers=("w",)) is Layer


class TestLeaf:
    def test_objects_of_a_leaf_class_are_held_whole(self):
        @fl.leaf
        class Table:
            def __init__(self):
                self.rows = torch.ones(3)

        table = Table()
        assert fl.fleaves({"t": table}) == []
        assert rebuilt({"t": table})["t"] is table

    def test_subclasses_of_a_leaf_class_are_leaves(self):
        @fl.leaf
        class Table:
            def __init__(self):
                self.rows = torch.ones(3)

        class Child(Table):
            pass

        assert fl.children(Child()) == {}

    def test_a_leaf_class_below_a_functor_is_a_leaf(self):
        @fl.leaf
        class Constant(Plain):
            pass

        assert fl.trainables([Constant(torch.ones(1), torch.ones(1))]) == []

    def test_a_functor_below_a_leaf_class_is_a_node(self):
        @fl.leaf
        class Table:
            pass

        @fl.functor
        class Node(Table):
            def __init__(self):
                self.w = torch.ones(1)

        class Child(Node):
            pass

        assert list(fl.children(Child())) == ["w"]

    def test_a_functor_can_not_become_a_leaf(self):
        with pytest.raises(ValueError, match="Plain is a functor already"):
            fl.leaf(Plain)

    @pytest.mark.parametrize("container", [list, dict, tuple, OrderedDict])
    def test_a_container_can_not_become_a_leaf(self, container):
        with pytest.raises(TypeError, match="is a container that trees look into"):
            fl.leaf(container)

    def test_an_object_can_not_become_a_leaf(self):
        with pytest.raises(TypeError, match="leaf takes a class, found 3"):
            fl.leaf(3)
