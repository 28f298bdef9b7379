"""Train and test mode: it follows the transform, then `with mode`, then the pin."""

import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fluxlike as fl


@fl.functor
class Probe:
    """Remembers nothing; says in which mode it was called."""

    def __init__(self):
        self.w = torch.ones(1)

    def __call__(self, x, seen):
        seen.append(fl.training(self))
        return (self.w * x).sum()


def modes_in_gradient(model, **options):
    seen = []
    fl.gradient(lambda m: m(torch.ones(1), seen), model, **options)
    return seen


class TestTransforms:
    def test_outside_it_is_test_mode(self):
        assert not fl.training()
        assert not fl.training(Probe())

    def test_a_gradient_of_a_model_trains(self):
        assert modes_in_gradient(Probe()) == [True]

    def test_a_model_deep_in_the_argument_counts(self):
        seen = []
        fl.gradient(lambda t: t["m"][0](torch.ones(1), seen), {"m": [Probe()]})
        assert seen == [True]

    def test_a_model_without_any_leaf_counts(self):
        @fl.functor
        class Noise:
            def __call__(self, x, seen):
                seen.append(fl.training(self))
                return x

        seen = []
        fl.gradient(lambda t: t["noise"](t["w"], seen).sum(), {"w": torch.ones(1), "noise": Noise()})
        assert seen == [True]

    def test_a_gradient_of_inputs_inherits_test_mode(self):
        seen = []
        fl.gradient(lambda x, m: m(x, seen), torch.ones(1), Probe())
        assert seen == [False]

    def test_a_gradient_of_inputs_inside_a_training_gradient_inherits_train_mode(self):
        seen = []

        def loss(m):
            inner = fl.gradient(lambda x: m(x, seen), torch.ones(1))
            return m(inner, seen)

        fl.gradient(loss, Probe())
        assert seen == [True, True]

    def test_only_differentiated_arguments_count(self):
        seen = []
        fl.gradient(lambda x, m: m(x, seen), torch.ones(1), Probe(), argnums=0)
        fl.gradient(lambda x, m: m(x, seen), torch.ones(1), Probe(), argnums=(0, 1))
        assert seen == [False, True]

    def test_withgradient_trains_alike(self):
        seen = []
        fl.withgradient(lambda m: m(torch.ones(1), seen), Probe())
        assert seen == [True]

    def test_withupdates_trains_if_any_argument_is_a_model(self):
        seen = []
        fl.withupdates(lambda x, m: m(x, seen), torch.ones(1), Probe())
        fl.withupdates(lambda x: seen.append(fl.training()), torch.ones(1))
        assert seen == [True, False]

    def test_a_dict_of_tensors_is_no_model(self):
        seen = []
        fl.gradient(lambda t: seen.append(fl.training()) or t["w"].sum(), {"w": torch.ones(1)})
        assert seen == [False]

    def test_after_a_gradient_it_is_test_mode_again(self):
        modes_in_gradient(Probe())
        assert not fl.training()

    def test_an_exception_in_a_gradient_restores_the_mode(self):
        def fail(m):
            raise KeyError("stop")

        with pytest.raises(KeyError, match="stop"):
            fl.gradient(fail, Probe())
        with pytest.raises(KeyError, match="stop"):
            fl.withupdates(fail, Probe())
        assert not fl.training()


class TestStated:
    def test_with_mode_beats_the_transform(self):
        with fl.mode("test"):
            assert modes_in_gradient(Probe()) == [False]

    def test_with_mode_inside_the_transform_beats_it_too(self):
        seen = []

        def loss(m):
            with fl.mode("test"):
                m(torch.ones(1), seen)
            return m(torch.ones(1), seen)

        fl.gradient(loss, Probe())
        assert seen == [False, True]

    def test_the_innermost_statement_counts(self):
        with fl.mode("train"):
            with fl.mode("test"):
                assert not fl.training()
            assert fl.training()
        assert not fl.training()

    def test_an_exception_restores_the_mode(self):
        with pytest.raises(KeyError, match="stop"), fl.mode("train"):
            raise KeyError("stop")
        assert not fl.training()

    @pytest.mark.parametrize("value", ["eval", True, None])
    def test_another_word_is_refused(self, value):
        with pytest.raises(ValueError, match=r"mode\(.*\): write 'train' or 'test'"), fl.mode(value):
            pass


class TestPinned:
    def test_a_pin_beats_the_transform(self):
        assert modes_in_gradient(fl.testmode(Probe())) == [False]
        assert fl.training(fl.trainmode(Probe()))

    def test_a_pin_beats_with_mode(self):
        with fl.mode("train"):
            assert not fl.training(fl.testmode(Probe()))
        with fl.mode("test"):
            assert fl.training(fl.trainmode(Probe()))

    def test_a_pin_reaches_every_layer_below(self):
        model = fl.trainmode({"a": [Probe()], "b": fl.Chain(fl.Dropout(0.5))})
        assert fl.training(model["a"][0])
        assert fl.training(model["b"].layers[0])

    def test_automode_undoes_a_pin(self):
        assert modes_in_gradient(fl.automode(fl.testmode(Probe()))) == [True]

    def test_the_last_pin_counts(self):
        assert fl.training(fl.trainmode(fl.testmode(Probe())))

    def test_the_model_handed_in_is_unchanged(self):
        model = Probe()
        pinned = fl.testmode(model)
        assert "_pinned_mode" not in vars(model)
        assert pinned.w is model.w
        fl.automode(pinned)
        assert modes_in_gradient(pinned) == [False]

    def test_a_pin_survives_maps_updates_and_moves(self):
        model = fl.trainmode(Probe())
        moved, _ = fl.update(fl.setup(fl.Descent(), model), model, fl.tree.zeros_like(model))
        for survivor in (fl.f64(model), fl.tree.clone(model), moved, fl.at(model, ".w").set(torch.zeros(1))):
            assert fl.training(survivor)

    def test_a_pin_is_no_part_of_the_structure(self):
        a, b = Probe(), fl.testmode(Probe())
        assert fl.tree.allclose(a, b)
        assert fl.tree.add(a, b).w.tolist() == [2]

    def test_a_pin_is_no_child(self):
        assert list(fl.children(fl.testmode(Probe()))) == ["w"]
        assert fl.state_dict(fl.testmode(Probe())).keys() == {"w"}

    def test_pinned_statistics_do_not_move(self):
        model = fl.testmode(fl.BatchNorm(1))
        grads = fl.gradient(lambda m: m(torch.tensor([[1.0], [2.0]])).sum(), model)
        assert grads.running_mean is None

    def test_frozen_classes_are_pinned(self):
        @fl.functor
        @dataclass(frozen=True)
        class Frozen:
            w: Any

        assert fl.training(fl.trainmode(Frozen(1)))
        assert not fl.training(fl.automode(fl.trainmode(Frozen(1))))

    def test_slots_without_room_are_an_error(self):
        @fl.functor
        @dataclass(slots=True)
        class Slotted:
            w: Any

        with pytest.raises(
            TypeError, match=r"\['a'\] is a .*Slotted, whose __slots__ leave no room.*'_pinned_mode'"
        ):
            fl.testmode({"a": Slotted(1)})

    def test_slots_with_room_are_pinned(self):
        @fl.functor
        class Slotted:
            __slots__ = ("_pinned_mode", "w")

            def __init__(self):
                self.w = torch.ones(1)

        pinned = fl.trainmode(Slotted())
        assert fl.training(pinned)
        assert fl.training(fl.f64(pinned))
        assert not fl.training(fl.automode(pinned))
        assert list(fl.children(pinned)) == ["w"]


def in_a_thread(f):
    out = []
    thread = threading.Thread(target=lambda: out.append(f()))
    thread.start()
    thread.join()
    return out[0]


class TestThreads:
    def test_a_stated_mode_belongs_to_its_thread(self):
        with fl.mode("train"):
            assert in_a_thread(fl.training) is False

    def test_the_mode_of_a_gradient_belongs_to_its_thread(self):
        seen = []
        fl.gradient(lambda m: seen.append(in_a_thread(fl.training)) or m.w.sum(), Probe())
        assert seen == [False]

    def test_two_threads_keep_their_modes(self):
        barrier = threading.Barrier(2)

        def stay(value):
            with fl.mode(value):
                barrier.wait()
                inside = fl.training()
                barrier.wait()
                return inside

        out = {}
        threads = [
            threading.Thread(target=lambda v: out.__setitem__(v, stay(v)), args=(v,))
            for v in ("train", "test")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert out == {"train": True, "test": False}
