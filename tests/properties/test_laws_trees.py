"""Laws that hold for every tree: structure, ties, purity, None, and the three motors."""

import tempfile
from pathlib import Path

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from tests.properties.strategies import (
    PARAMETER_DTYPES,
    assert_same_nodes,
    constants,
    leaves_of,
    same_bits,
    same_content,
    tensors,
    ties,
    trees,
)

law = settings(max_examples=25, deadline=None)


def flatten(tree):
    fl.fleaves(tree)  # registers subclasses on first sight
    return optree.tree_flatten(tree, none_is_leaf=True, namespace="fluxlike")


def wide(x):
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def squares(tree, reached):
    """Σ (k+1)·|x_k|² over the parameters whose number k is among those reached."""
    terms = [
        (k + 1) * (wide(x) * wide(x).conj()).real.sum()
        for k, x in enumerate(fl.trainables(tree))
        if k % 3 in reached
    ]
    return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)


def gradient_of_squares(tree, reached):
    """The gradient of `squares` at each leaf, worked out by hand."""
    numbers = {id(x): k for k, x in enumerate(fl.trainables(tree))}
    expected, seen = [], set()
    for x in flatten(tree)[0]:
        k = numbers.get(id(x)) if isinstance(x, torch.Tensor) else None
        first = k is not None and k not in seen
        expected.append((2 * (k + 1) * wide(x)).to(x.dtype) if first and k % 3 in reached else None)
        seen.add(k)
    return expected


def assert_leaves(found, expected):
    assert [x is None for x in found] == [x is None for x in expected]
    for x, y in zip(found, expected, strict=True):
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-6, atol=0)


reached_sets = st.sets(st.integers(0, 2), max_size=3)

# The laws hold for a loss that reaches nothing, too.
pytestmark = pytest.mark.filterwarnings("ignore:update found no gradient")


class TestStructure:
    @law
    @given(st.one_of(trees(), constants, tensors()))
    def test_flatten_and_rebuild_is_the_identity(self, tree):
        leaves, treedef = flatten(tree)
        again = treedef.unflatten(leaves)
        assert_same_nodes(tree, again)
        assert all(a is b for a, b in zip(leaves_of(tree), leaves_of(again), strict=True))
        assert flatten(again)[1] == treedef

    @law
    @given(trees())
    def test_every_leaf_is_found(self, tree):
        assert sorted(map(id, flatten(tree)[0])) == sorted(map(id, leaves_of(tree)))

    @law
    @given(trees())
    def test_mapping_the_identity_is_the_identity(self, tree):
        for again in (fl.fmap(lambda x: x, tree), fl.fmap(lambda x: x, tree, leaves="all")):
            assert_same_nodes(tree, again)
            assert all(a is b for a, b in zip(leaves_of(tree), leaves_of(again), strict=True))

    @law
    @given(trees())
    def test_mapping_composes(self, tree):
        def double(x):
            return x + x

        once = fl.fmap(lambda x: double(double(x)), tree)
        assert same_content(once, fl.fmap(double, fl.fmap(double, tree)))

    @law
    @given(trees())
    def test_paths_lead_to_their_leaves(self, tree):
        found = []
        fl.fmap_with_path(lambda path, x: found.append((path, x)), tree)
        assert all(fl.at(tree, path).get() is x for path, x in found)

    @law
    @given(trees(), st.data())
    def test_partition_and_combine_is_the_identity(self, tree, data):
        wanted = data.draw(st.sampled_from([p for p, _ in fl.trainables(tree, paths=True)]))
        again = fl.combine(*fl.partition(tree, lambda path, x: path == wanted))
        assert_same_nodes(tree, again)
        assert all(a is b for a, b in zip(leaves_of(tree), leaves_of(again), strict=True))

    @law
    @given(trees())
    def test_surgery_that_puts_back_what_was_there_is_the_identity(self, tree):
        for path, x in fl.trainables(tree, paths=True):
            again = fl.at(tree, path).set(x)
            assert all(a is b for a, b in zip(leaves_of(tree), leaves_of(again), strict=True))

    @law
    @given(trees())
    def test_a_tree_can_be_printed(self, tree):
        assert str(fl.summary(tree)).count("parameter") >= 1
        for node in tree:
            repr(node)


class TestTies:
    @law
    @given(trees())
    def test_maps_casts_and_copies_keep_ties(self, tree):
        for image in (
            fl.fmap(lambda x: x.clone(), tree),
            fl.tree.clone(tree),
            fl.tree.zeros_like(tree),
            fl.tree.add(tree, tree),
            fl.to_device(tree, "meta"),
        ):
            assert_same_nodes(tree, image)
            assert ties(image) == ties(tree)

    @law
    @given(trees())
    def test_widening_keeps_ties(self, tree):
        image = fl.f64(tree)
        assert_same_nodes(tree, image)
        assert ties(image) == ties(tree)

    @law
    @given(trees(), st.sampled_from([fl.Descent(0.5), fl.Momentum(), fl.Adam()]))
    def test_update_keeps_ties(self, tree, rule):
        grads = fl.gradient(squares, tree, {0, 1, 2})
        model, _ = fl.update(fl.setup(rule, tree), tree, grads)
        assert_same_nodes(tree, model)
        assert ties(model) == ties(tree)

    @law
    @given(trees())
    def test_a_state_dict_brings_back_content_and_ties(self, tree):
        again = fl.load_state_dict(fl.tree.zeros_like(tree), fl.state_dict(tree))
        assert same_content(again, tree)
        assert ties(again) == ties(tree)

    @law
    @given(trees())
    def test_a_saved_tree_comes_back_exactly_with_its_ties(self, tree):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "tree.safetensors"
            fl.save(file, tree)
            again = fl.load(file, like=fl.tree.zeros_like(tree))
        assert same_content(again, tree)
        assert ties(again) == ties(tree)


class TestGradient:
    @law
    @given(trees(), reached_sets)
    def test_it_has_the_treedef_of_its_argument(self, tree, reached):
        grads = fl.gradient(squares, tree, reached)
        assert flatten(grads)[1] == flatten(tree)[1]
        assert_same_nodes(
            fl.fmap(lambda x: None, tree, leaves="all"), fl.fmap(lambda x: None, grads, leaves="all")
        )

    @law
    @given(trees(), reached_sets)
    def test_it_is_none_exactly_where_the_loss_does_not_reach(self, tree, reached):
        assert_leaves(flatten(fl.gradient(squares, tree, reached))[0], gradient_of_squares(tree, reached))

    @law
    @given(trees(), reached_sets)
    def test_it_agrees_inside_another_gradient(self, tree, reached):
        inner = []

        def outer(s):
            inner.append(fl.gradient(squares, tree, reached))
            return s * s

        fl.gradient(outer, 3.0)
        assert_leaves(flatten(inner[0])[0], gradient_of_squares(tree, reached))

    @law
    @given(trees(), reached_sets)
    def test_it_agrees_inside_grad_of_torch(self, tree, reached):
        def outer(s):
            leaves, _ = flatten(fl.gradient(squares, tree, reached))
            places.append([x is not None for x in leaves])
            return s * s, [x for x in leaves if x is not None]

        places = []
        _, found = torch.func.grad(outer, has_aux=True)(torch.tensor(3.0))
        found = iter(found)
        leaves = [next(found) if there else None for there in places[0]]
        assert_leaves(leaves, gradient_of_squares(tree, reached))

    @law
    @given(trees(), reached_sets)
    def test_it_agrees_inside_vmap_of_torch(self, tree, reached):
        def one(s):
            leaves, _ = flatten(fl.gradient(lambda t: s * squares(t, reached), tree))
            places.append([x is not None for x in leaves])
            return [x for x in leaves if x is not None]

        places = []
        found = torch.vmap(one)(torch.ones(2, dtype=torch.float64))
        for member in range(2):
            members = iter(found)
            leaves = [next(members)[member] if there else None for there in places[0]]
            assert_leaves(leaves, gradient_of_squares(tree, reached))

    @law
    @given(trees(dtypes=(torch.float32, torch.float64, torch.complex64)))
    def test_it_is_differentiable_inside_another(self, tree):
        def norm_of_gradient(t):
            return sum(
                (wide(g) * wide(g).conj()).real.sum() for g in fl.fleaves(fl.gradient(squares, t, {0, 1, 2}))
            )

        # All tensors of the gradient: that of a tied one may stand at the place of a buffer.
        found = [g for g in fl.fleaves(fl.gradient(norm_of_gradient, tree)) if isinstance(g, torch.Tensor)]
        for k, (g, x) in enumerate(zip(found, fl.trainables(tree), strict=False)):
            torch.testing.assert_close(g, (8 * (k + 1) ** 2 * wide(x)).to(x.dtype))

    @law
    @given(trees(), reached_sets)
    def test_its_results_carry_no_graph(self, tree, reached):
        value, grads = fl.withgradient(squares, tree, reached)
        assert not value.requires_grad
        assert not any(x.requires_grad for x in fl.fleaves(grads))


class TestPurity:
    @law
    @given(trees(), reached_sets, st.sampled_from([fl.Descent(0.5), fl.Momentum(), fl.Adam(), fl.AdamW()]))
    def test_a_step_changes_no_argument(self, tree, reached, rule):
        state = fl.setup(rule, tree)
        grads = fl.gradient(squares, tree, reached)
        arguments = (state, tree, grads)
        before = fl.tree.clone(arguments)
        fl.update(*arguments)
        fl.gradient(squares, tree, reached)
        for old, new in zip(flatten(before)[0], flatten(arguments)[0], strict=True):
            assert same_bits(old, new) if isinstance(old, torch.Tensor) else old is new

    @law
    @given(trees(), reached_sets)
    def test_a_step_leaves_what_has_no_gradient_untouched(self, tree, reached):
        grads = fl.gradient(squares, tree, reached)
        model, _ = fl.update(fl.setup(fl.Adam(), tree), tree, grads)
        moved = {id(x) for k, x in enumerate(fl.trainables(tree)) if k % 3 in reached}
        for old, new in zip(leaves_of(tree), leaves_of(model), strict=True):
            assert (new is old) == (id(old) not in moved)

    @law
    @given(trees(), reached_sets)
    def test_two_steps_from_the_same_state_are_equal(self, tree, reached):
        state = fl.setup(fl.Adam(), tree)
        grads = fl.gradient(squares, tree, reached)
        first, second = (fl.update(state, tree, grads)[0] for _ in range(2))
        assert same_content(first, second)

    @law
    @given(trees())
    def test_no_random_numbers_are_used_up(self, tree):
        before = torch.random.get_rng_state()
        state = fl.setup(fl.Adam(), tree)
        fl.update(state, tree, fl.gradient(squares, tree, {0}))
        fl.tree.norm(fl.f64(tree))
        assert torch.equal(torch.random.get_rng_state(), before)


class TestVectors:
    @law
    @given(trees(dtypes=PARAMETER_DTYPES))
    def test_the_square_of_the_norm_is_the_dot_product(self, tree):
        tree = fl.f64(tree)
        norm = fl.tree.norm(tree)
        assert (norm**2).item() == pytest.approx(fl.tree.dot(tree, tree).real.item(), rel=1e-6)

    @law
    @given(trees(dtypes=PARAMETER_DTYPES))
    def test_subtracting_what_was_added_gives_the_tree_back(self, tree):
        doubled = fl.tree.add(tree, tree)
        assert fl.tree.allclose(fl.tree.sub(doubled, tree), tree)
        assert fl.tree.allclose(fl.tree.scale(tree, 2), doubled)
        assert fl.tree.allclose(fl.tree.lerp(tree, doubled, 1.0), doubled)
