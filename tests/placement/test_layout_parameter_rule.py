"""`parameter_rule`: how a class of one's own keeps its tensors elsewhere, and what is refused."""

import threading

import pytest
import torch

import fluxlike as fl


@fl.functor
class Mine:
    def __init__(self):
        self.w, self.b, self.mean = torch.randn(3, 2), torch.randn(3), torch.randn(3)

    def __call__(self, x):
        return x @ self.w.T + self.b


@fl.functor
class Filter:
    def __init__(self, n):
        self.w, self.stride = torch.randn(3, 2, *range(4, 4 + n)), (1,) * n


@pytest.fixture
def rule():
    """Registers a rule for the time of a test."""
    made = []

    def register(*args, **kwargs):
        made.append(fl.parameter_rule(*args, **kwargs))
        return made[-1]

    yield register
    for rule in dict.fromkeys(made):
        rule.remove()


def shapes(state):
    return fl.fmap(lambda x: tuple(x.shape), state)


def is_read_and_written(model, framework):
    state = fl.foreign_state(model, framework)
    again = fl.load_foreign_state(fl.fmap(torch.zeros_like, model), state, framework)
    return all(map(torch.equal, fl.fleaves(again), fl.fleaves(model)))


class TestParts:
    def test_a_name_a_layout_and_a_collection(self, rule):
        rule(Mine, "flax", (".w", "kernel", "IO", "OI"), (".b", "bias"), (".mean", "batch_stats/mean"))
        assert shapes(fl.foreign_state(fl.Chain(Mine()), "flax")) == {
            "params": {"Mine_0": {"kernel": (2, 3), "bias": (3,)}},
            "batch_stats": {"Mine_0": {"mean": (3,)}},
        }
        assert is_read_and_written(fl.Chain(Mine(), Mine()), "flax")

    def test_two_functions(self, rule):
        rule(
            Mine,
            "keras",
            ((".w", ".b"), "both", lambda x: (x[:, 1:], x[:, 0]), lambda w, b: torch.cat([b[:, None], w], 1)),
            (".mean", ("low", "high"), lambda x, y: torch.cat([x, y]), lambda x: x.split([1, 2])),
            names=["mine"],
        )
        state = fl.foreign_state(fl.Chain(Mine()), "keras")
        assert shapes(state) == {"mine": {"both": (3, 3), "low": (1,), "high": (2,)}}
        assert is_read_and_written(fl.Chain(Mine()), "keras")

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_s_stands_for_the_axes_that_a_layer_strides_along(self, rule, n):
        rule(Filter, "keras", (".w", "kernel", "SIO", "OIS"))
        rule(Filter, "flux", (".w", "weight", "RIO", "OIS"))
        sizes = tuple(range(4, 4 + n))
        assert shapes(fl.foreign_state(Filter(n), "keras")) == {"kernel": (*sizes, 2, 3)}
        assert shapes(fl.foreign_state(Filter(n), "flux")) == {"weight": (*sizes[::-1], 2, 3)}
        assert is_read_and_written(Filter(n), "keras")

    def test_s_needs_a_stride(self, rule):
        rule(Mine, "flux", (".w", "weight", "SIO", "OIS"))
        with pytest.raises(TypeError, match=r"Mine has no tuple \.stride; write a letter for each axis"):
            fl.foreign_state(Mine(), "flux")

    def test_a_function_of_the_layer(self, rule):
        rule(Mine, "flux", lambda layer: [(".w", f"w{len(layer.b)}", "IO", "OI"), (".b", "b")])
        assert shapes(fl.foreign_state(Mine(), "flux")) == {"w3": (2, 3), "b": (3,)}

    @pytest.mark.parametrize(
        "part",
        [".weight", (".weight",), (".w", "w", "IO"), (".w", 3), (".w", "w", "IO", len), None, (), Mine],
    )
    def test_what_is_none_is_refused_at_once(self, part):
        with pytest.raises(TypeError, match=r"a part .* is a tuple: \(ours, theirs\) such as .* found"):
            fl.parameter_rule(Mine, "flax", part)
        assert fl.parameter_rule(Mine, "flax").remove() is None

    def test_layouts_of_other_letters(self):
        with pytest.raises(ValueError, match="'IO' and 'OK'"):
            fl.parameter_rule(Mine, "flax", (".w", "kernel", "IO", "OK"))

    def test_several_names_without_functions(self):
        with pytest.raises(ValueError, match=r"has several names; write a part for each, or say by two func"):
            fl.parameter_rule(Mine, "flax", ((".w", ".b"), "kernel"))


class TestRegistry:
    def test_a_class_has_one_rule_in_a_framework(self, rule):
        first = rule(Mine, "flax", (".w", "kernel", "IO", "OI"))
        assert fl.parameter_rule(Mine, "flax", (".w", "kernel", "IO", "OI")) is first
        with pytest.raises(ValueError, match=r"Mine has a rule in flax already; .* rule\.remove\(\)"):
            fl.parameter_rule(Mine, "flax", (".w", "other"))
        rule(Mine, "keras", (".w", "other"))

    def test_the_rules_of_ours_are_not_overwritten(self):
        with pytest.raises(ValueError, match="Dense has a rule in flax already"):
            fl.parameter_rule(fl.Dense, "flax", (".weight", "weight"))

    def test_a_rule_is_taken_out_once(self):
        rule = fl.parameter_rule(Mine, "flax", (".w", "kernel"))
        rule.remove()
        with pytest.raises(ValueError, match="this rule of Mine in flax is not registered"):
            rule.remove()
        with pytest.raises(TypeError, match="no rule says how Mine keeps it in flax"):
            fl.foreign_state(Mine(), "flax")

    def test_a_subclass_follows_until_it_has_its_own(self, rule):
        class Sub(fl.Dense):
            pass

        assert list(fl.foreign_state(Sub(2, 3), "keras")) == ["kernel", "bias"]
        rule(Sub, "keras", (".weight", "w"), (".bias", "b"))
        assert list(fl.foreign_state(Sub(2, 3), "keras")) == ["w", "b"]

    def test_no_class(self):
        with pytest.raises(TypeError, match="takes the class of the layers first, found 'Dense'"):
            fl.parameter_rule("Dense", "flax")

    def test_names_that_are_one_string(self):
        with pytest.raises(TypeError, match=r"write a list of names, names=\['mine'\]"):
            fl.parameter_rule(Mine, "keras", names="mine")

    def test_an_unknown_framework(self):
        with pytest.raises(ValueError, match="framework='jax': write one of 'flux', 'flax', 'keras'"):
            fl.parameter_rule(Mine, "jax")

    def test_of_threads_that_register_at_once_one_wins(self):
        start, won, lost = threading.Barrier(4), [], []

        def work(number):
            start.wait()
            try:
                won.append(fl.parameter_rule(Mine, "flax", (".w", f"kernel{number}")))
            except ValueError:
                lost.append(number)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)
        won[0].remove()
