"""What every layer promises, as one table: a row a layer (`rows_*.py`), a test a promise."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optree
import pytest
import torch
from layer_row import Row
from torch import Tensor, nn

import fluxlike as fl
from fluxlike._private.compiler import build
from fluxlike.placement import dtype as placement_dtype
from fluxlike.trees.functor import spec_of
from fluxlike.trees.paths import is_node

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("rows_*.py"))
ROWS: list[Row] = [row for name in MODULES for row in importlib.import_module(name).ROWS]

every_layer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
both_modes = pytest.mark.parametrize("mode", ["train", "test"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def floating(tree: Any) -> list[Tensor]:
    return [t for t in fl.fleaves(tree) if t.is_floating_point()]


def cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(fl.fmap(lambda t: t.to(dtype) if t.is_floating_point() else t, x) for x in inputs)


def rows_of(inputs: tuple[Any, ...], where: Any) -> tuple[Any, ...]:
    """The same rows of every input."""
    return tuple(fl.fmap(lambda t: t[where], x) for x in inputs)


def pair(row: Row, mode: str) -> tuple[Any, nn.Module]:
    """Our layer and its twin with the same tensors."""
    layer, twin = row.layer(), row.twin().double().train(mode == "train")
    theirs = row.order([t for t in twin.state_dict().values() if t.is_floating_point()])
    for mine, other in zip(floating(layer), theirs, strict=True):
        assert mine.shape == other.shape
        other.copy_(mine)
    return layer, twin


def exact(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def leaves(tree: Any) -> list[Any]:
    """All leaves in order, None among them, each place by itself."""
    return optree.tree_leaves(tree, none_is_leaf=True, namespace="fluxlike")


def value(x: Any) -> Any:
    return x.value if isinstance(x, fl.Assigned) else x


def close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Trees whose leaves are of the same types and, where they are tensors, of the same numbers."""
    for mine, other in zip(leaves(actual), leaves(expected), strict=True):
        assert type(mine) is type(other)
        if isinstance(value(other), Tensor):
            torch.testing.assert_close(value(mine), value(other), rtol=tolerance, atol=tolerance)


def member(tree: Any, i: int) -> list[Any]:
    """The leaves of one of the results that `vmap` put together."""
    return [
        fl.Assigned(x.value[i]) if isinstance(x, fl.Assigned) else x[i] if isinstance(x, Tensor) else x
        for x in leaves(tree)
    ]


def squares(row: Row, both: Any) -> tuple[Tensor, Any]:
    """A loss of a layer and its inputs, and the outputs."""
    outputs = row.run(both[0], *both[1])
    return sum((y.square().sum() for y in outputs), torch.zeros(())), outputs


def step(row: Row, both: Any) -> Any:
    """The loss and the outputs, with the gradient and the assigned buffers where there are any."""
    if not fl.trainables(both):
        return fl.withupdates(lambda both: squares(row, both), both)
    return fl.withgradient(lambda both: squares(row, both), both)


def direction(tree: Any) -> Any:
    """A tree of the same structure, drawn at what is trained and zero elsewhere."""
    ids = set(map(id, fl.trainables(tree)))
    return fl.fmap(lambda t: torch.randn_like(t) if id(t) in ids else torch.zeros_like(t), tree)


def scalar(outputs: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
    return sum(((y * w).sum() for y, w in zip(outputs, weights, strict=True)), torch.zeros(()))


def rate(inputs: tuple[Any, ...]) -> list[Tensor]:
    """The floating tensors among the inputs."""
    return [t for t in fl.fleaves(inputs) if t.is_floating_point()]


@every_layer
@both_modes
def test_output_and_gradients_equal_torchs(row: Row, mode: str):
    layer, twin = pair(row, mode)
    inputs = row.inputs()
    theirs = fl.fmap(lambda t: t.clone().requires_grad_(t.is_floating_point()), inputs)
    torch.manual_seed(7)
    outputs2 = row.run_twin(twin, *theirs)
    weights = [torch.randn_like(y) for y in outputs2]
    scalar(outputs2, weights).backward()

    def loss(both: Any) -> tuple[Tensor, Any]:
        outputs = row.run(both[0], *both[1])
        return scalar(outputs, weights), outputs

    with fl.mode(mode):
        torch.manual_seed(7)
        (_, outputs), (of_layer, of_inputs) = fl.withgradient(loss, (layer, inputs))

    for mine, other in zip(outputs, outputs2, strict=True):
        exact(mine, other.detach())
    reached = [t.grad for t in rate(theirs)]
    for mine, other in zip(leaves_of_gradient(of_inputs, inputs), reached, strict=True):
        exact(mine, other)
    expected = row.order([p.grad for p in twin.parameters()])
    for mine, other in zip(leaves_of_gradient(of_layer, layer), expected, strict=True):
        if mine is None or other is None:  # not reached, which torch says by None or zeros
            assert mine is other or not (other if mine is None else mine).any()
        else:
            exact(mine, other)


def leaves_of_gradient(grads: Any, like: Any) -> list[Tensor | None]:
    """The gradients of the parameters, in order, None where there is none."""
    ids = set(map(id, fl.trainables(like)))
    found = fl.fleaves(grads, leaves="all")
    places = fl.fleaves(like, leaves="all")
    return [g for g, p in zip(found, places, strict=True) if id(p) in ids]


@every_layer
@both_modes
def test_buffers_after_a_call_equal_torchs(row: Row, mode: str):
    layer, twin = pair(row, mode)
    inputs = row.inputs()
    torch.manual_seed(7)
    row.run_twin(twin, *inputs)
    with fl.mode(mode):
        torch.manual_seed(7)
        _, updates = fl.withupdates(lambda m: row.run(m, *inputs), layer)
    new = fl.apply_updates(layer, updates)
    theirs = row.order([t for t in twin.state_dict().values() if t.is_floating_point()])
    for mine, other in zip(floating(new), theirs, strict=True):
        exact(mine, other)


@every_layer
@both_modes
def test_gradcheck_of_input_and_parameters(row: Row, mode: str):
    layer, inputs = row.layer(), row.inputs()
    parameters, xs = fl.trainables(layer), rate(inputs)

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        new = {id(p): v for p, v in zip([*xs, *parameters], values, strict=True)}
        torch.manual_seed(3)
        with fl.mode(mode):
            moved, given = fl.fmap(lambda t: new.get(id(t), t), (layer, inputs))
            return row.run(moved, *given)

    arguments = [p.clone().requires_grad_() for p in [*xs, *parameters]]
    # In random directions an error of one number is but a part of what is compared.
    assert not arguments or torch.autograd.gradcheck(forward, arguments, fast_mode=True, rtol=1e-6, atol=1e-8)


@every_layer
def test_repr_has_the_arguments_and_the_counts(row: Row):
    assert repr(row.make()) == row.text


@every_layer
@both_modes
def test_a_call_changes_neither_the_layer_nor_the_input(row: Row, mode: str):
    layer, inputs = row.layer(), row.inputs()
    before, given = fl.tree.clone(layer), fl.tree.clone(inputs)
    with fl.mode(mode):
        row.run(layer, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(layer), fl.fleaves(before), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(inputs), fl.fleaves(given), strict=True))


@every_layer
@both_modes
@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (fl.f16, torch.float16),
        (fl.bf16, torch.bfloat16),
        (fl.f32, torch.float32),
        (fl.f64, torch.float64),
    ],
    ids=["f16", "bf16", "f32", "f64"],
)
def test_a_cast_layer_runs_in_that_dtype(row: Row, mode: str, change: Any, dtype: torch.dtype):
    layer, inputs = change(row.layer()), cast(row.inputs(), dtype)
    exactly = fl.f64(layer)
    with fl.mode(mode):
        torch.manual_seed(5)
        outputs = row.run(layer, *inputs)
        torch.manual_seed(5)
        wanted = row.run(exactly, *cast(inputs, torch.float64))
    for y, w in zip(outputs, wanted, strict=True):
        assert y.dtype == dtype
        if not row.draws or mode == "test":  # a draw may differ by dtype
            error = (y.double() - w).abs().max() / w.abs().max()
            assert error <= row.half * torch.finfo(dtype).eps


@every_layer
def test_normalisation_stays_float32_under_half_and_everything_else_does_not(row: Row):
    def check(node: Any, kept: bool, dtype: torch.dtype) -> None:
        kept = kept or isinstance(node, tuple(placement_dtype._stay_float32))
        for child in fl.children(node).values():
            if isinstance(child, Tensor) and child.is_floating_point():
                assert child.dtype == (torch.float32 if kept else dtype)
            check(child, kept, dtype)

    for change, dtype in ((fl.f16, torch.float16), (fl.bf16, torch.bfloat16)):
        check(change(row.make()), False, dtype)


@every_layer
@both_modes
def test_save_and_load_give_the_same_layer(row: Row, mode: str, tmp_path: Any):
    layer, inputs = row.layer(), row.inputs()
    fl.save(tmp_path / "layer.safetensors", layer)
    loaded = fl.load(tmp_path / "layer.safetensors", like=fl.f64(row.make()))
    assert type(loaded) is type(layer)
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(layer), fl.fleaves(loaded), strict=True))
    with fl.mode(mode):
        torch.manual_seed(1)
        outputs = row.run(layer, *inputs)
        torch.manual_seed(1)
        again = row.run(loaded, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))


@every_layer
def test_state_dict_round_trip_gives_the_same_layer(row: Row):
    layer, inputs = row.layer(), row.inputs()
    loaded = fl.load_state_dict(fl.f64(row.make()), fl.state_dict(layer))
    outputs, again = row.run(layer, *inputs), row.run(loaded, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))


@every_layer
def test_fmap_keeps_class_structure_settings_and_tensors(row: Row):
    layer, inputs = row.layer(), row.inputs()
    same = fl.fmap(lambda t: t, layer)
    assert type(same) is type(layer)
    assert same is not layer or not fl.children(layer)
    structures = [optree.tree_structure(m, none_is_leaf=True, namespace="fluxlike") for m in (same, layer)]
    assert structures[0] == structures[1]
    assert all(a is b for a, b in zip(fl.fleaves(same), fl.fleaves(layer), strict=True))
    assert repr(same) == repr(layer)
    outputs, again = row.run(layer, *inputs), row.run(same, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))


@pytest.mark.parametrize("row", [row for row in ROWS if fl.trainables(row.make())], ids=lambda row: row.name)
@both_modes
def test_tied_layers_share_one_gradient_and_stay_tied_in_an_update(row: Row, mode: str):
    layer, inputs = row.layer(), row.inputs()

    def loss(pair: Any) -> Tensor:
        torch.manual_seed(2)
        a = row.run(pair[0], *inputs)
        torch.manual_seed(2)
        return sum((y.square().sum() for y in (*a, *row.run(pair[1], *inputs))), torch.zeros(()))

    with fl.mode(mode):
        grads = fl.gradient(loss, (layer, layer))
        apart = fl.gradient(loss, (layer, fl.tree.clone(layer)))
    assert not fl.trainables(grads[1])
    for total, first, second in zip(
        leaves_of_gradient(grads[0], layer),
        leaves_of_gradient(apart[0], layer),
        leaves_of_gradient(apart[1], layer),
        strict=True,
    ):
        assert (total is None) == (first is None)
        if total is not None:
            torch.testing.assert_close(total, first + second, rtol=1e-9, atol=1e-9)
    tied = (layer, layer)
    new, _ = fl.update(fl.setup(fl.Descent(0.1), tied), tied, grads)
    assert all(a is b for a, b in zip(fl.fleaves(new[0]), fl.fleaves(new[1]), strict=True))


@every_layer
def test_a_batch_of_one_is_the_first_row(row: Row):
    layer, inputs = row.layer(), row.inputs()
    alone, outputs = row.run(layer, *rows_of(inputs, slice(1))), row.run(layer, *inputs)
    for mine, other in zip(alone, outputs, strict=True):
        exact(mine, other[:1])


@every_layer
def test_a_batch_of_one_trains_or_says_why_not(row: Row):
    layer, inputs = row.layer(), rows_of(row.inputs(), slice(1))
    refusal = pytest.raises((ValueError, fl.LayerError), match="more than 1 value per channel")
    with fl.mode("train"), contextlib.nullcontext() if row.lone_row_trains else refusal:
        assert all(y.isfinite().all() for y in row.run(layer, *inputs))


@pytest.mark.parametrize("row", [row for row in ROWS if row.empty], ids=lambda row: row.name)
@both_modes
def test_an_empty_batch_gives_an_empty_batch_and_zero_gradients(row: Row, mode: str):
    layer, inputs = row.layer(), row.inputs()
    none = rows_of(inputs, slice(0))
    with fl.mode(mode):
        for mine, other in zip(row.run(layer, *none), row.run(layer, *inputs), strict=True):
            assert mine.shape == (0, *other.shape[1:])
        if fl.trainables(layer):
            grads, some = (
                fl.gradient(lambda m: sum((y.sum() for y in row.run(m, *xs)), torch.zeros(())), layer)
                for xs in (none, inputs)
            )
            for mine, other in zip(
                leaves_of_gradient(grads, layer), leaves_of_gradient(some, layer), strict=True
            ):
                assert (mine is None) == (other is None)
                assert mine is None or (mine == 0).all()


@every_layer
def test_on_the_meta_device_it_gives_shapes_without_memory(row: Row):
    inputs = row.inputs()
    with torch.device("meta"):
        layer = fl.f64(row.make())
    outputs = row.run(layer, *fl.to_device(inputs, "meta"))
    for mine, other in zip(outputs, row.run(row.layer(), *inputs), strict=True):
        assert mine.is_meta
        assert mine.shape == other.shape


@every_layer
def test_under_vmap_it_does_what_it_does_on_a_batch(row: Row):
    layer, inputs = row.layer(), row.inputs()

    def alone(one: Any) -> tuple[Tensor, ...]:
        batch = fl.fmap(lambda t: t.unsqueeze(0), one)
        return tuple(y.squeeze(0) for y in row.run(layer, *batch))

    for mine, other in zip(fl.vmap(alone)(inputs), row.run(layer, *inputs), strict=True):
        exact(mine, other)


@pytest.mark.parametrize(
    ("row", "mode"),
    [(row, mode) for row in ROWS for mode in ("train", "test") if mode == "test" or row.lone_row_trains],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_under_vmap_each_example_has_the_value_gradient_and_buffers_it_has_alone(row: Row, mode: str):
    layer, inputs, key = row.layer(), row.inputs(), fl.Key(5)

    def alone(one: Any) -> Any:
        return step(row, (layer, fl.fmap(lambda t: t.unsqueeze(0), one)))

    count = len(fl.fleaves(inputs)[0])
    with fl.mode(mode):
        with fl.seeded(key):
            together = fl.vmap(alone, randomness="different")(inputs)
        for i in range(count):
            with fl.seeded(key.fold_in(i)):
                expected = alone(rows_of(inputs, i))
            close(member(together, i), expected)


@pytest.mark.parametrize("row", [row for row in ROWS if fl.fleaves(row.make())], ids=lambda row: row.name)
@both_modes
def test_members_of_an_ensemble_have_values_gradients_and_buffers_as_alone(row: Row, mode: str):
    layers, inputs, key = [row.layer() for _ in range(3)], row.inputs(), fl.Key(5)
    with fl.mode(mode):
        with fl.seeded(key):
            together = fl.vmap(lambda m: step(row, (m, inputs)), randomness="different")(fl.stack(layers))
        for i, layer in enumerate(layers):
            with fl.seeded(key.fold_in(i)):
                expected = step(row, (layer, inputs))
            close(member(together, i), expected)


with_trainables = pytest.mark.parametrize(
    "row",
    [row for row in ROWS if fl.trainables((row.make(), row.inputs()))],
    ids=lambda row: row.name,
)


@with_trainables
@both_modes
def test_second_derivatives_are_differences_of_first_ones(row: Row, mode: str):
    both = (row.layer(), row.inputs())
    v, w, h = direction(both), direction(both), 1e-5

    def slope(both: Any) -> Tensor:
        return fl.tree.dot(fl.gradient(lambda both: squares(row, both)[0], both, key=fl.Key(3)), w)

    with fl.mode(mode):
        found = fl.tree.dot(fl.gradient(slope, both), v)
        with fl.seeded(fl.Key(3)):
            of_forward_mode = fl.hvp(lambda both: squares(row, both)[0], both, v=v)
        if not (row.detached and mode == "train"):
            ahead, behind = (slope(fl.tree.add(both, fl.tree.scale(v, sign * h))) for sign in (1, -1))
            torch.testing.assert_close(found, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-4)
    close(fl.tree.dot(of_forward_mode, w), found)


@with_trainables
@both_modes
def test_forward_mode_gives_the_derivative_in_a_direction(row: Row, mode: str):
    both = (row.layer(), row.inputs())
    v = direction(both)
    with fl.mode(mode):
        with fl.seeded(fl.Key(3)):
            loss, slope = fl.pushforward(lambda both: squares(row, both)[0], both, v=v)
        with fl.seeded(fl.Key(3)):
            value, grads = fl.withgradient(lambda both: squares(row, both)[0], both)
    close((loss, slope), (torch.as_tensor(value), fl.tree.dot(grads, v)))


@every_layer
@both_modes
def test_tensors_in_another_order_of_memory_give_the_same(row: Row, mode: str):
    both = (row.layer(), row.inputs())
    turned = fl.fmap(lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim > 1 else t, both)
    strided = fl.fmap(lambda t: torch.stack([t, t], -1)[..., 0], both)
    results = []
    with fl.mode(mode):
        for same in (both, turned, strided, (strided[0], both[1])):
            with fl.seeded(fl.Key(3)):
                results.append(step(row, same))
    for result in results[1:]:
        close(result, results[0])


@every_layer
@both_modes
def test_a_call_is_pure(row: Row, mode: str):
    def call(layer: Any, inputs: Any) -> Any:
        with fl.seeded(fl.Key(3)):
            return row.run(layer, *inputs)

    with fl.mode(mode):
        purity = fl.check_pure(call, row.layer(), row.inputs())
    assert purity, purity


@pytest.mark.parametrize("row", [row for row in ROWS if row.autocast], ids=lambda row: row.name)
def test_jit_gives_the_dtypes_and_numbers_of_eager_under_autocast(row: Row, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    both, key = (fl.f32(row.layer()), cast(row.inputs(), torch.float32)), fl.Key(3)

    def seeded_step(both: Any, key: Any) -> Any:
        with fl.seeded(key):
            return step(row, both)

    with fl.mode("train"), torch.autocast("cpu", torch.bfloat16):
        eager, jitted = seeded_step(both, key), fl.jit(seeded_step)(both, key)
    for mine, other in zip(leaves(jitted), leaves(eager), strict=True):
        assert type(mine) is type(other)
        if isinstance(value(other), Tensor):
            wanted = value(other)
            assert value(mine).dtype == wanted.dtype
            torch.testing.assert_close(value(mine), wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


def test_every_layer_has_a_row():
    def kinds(node: Any) -> set[type]:
        return {type(node)}.union(*(kinds(child) for child in fl.children(node).values() if is_node(child)))

    public = {getattr(fl, name) for name in fl.__all__}
    layers = {
        kind
        for kind in public
        if isinstance(kind, type) and spec_of(kind) and kind.__module__.startswith("fluxlike.layers.")
    }
    callables = {kind for kind in layers if "__call__" in dir(kind)}
    assert len(callables) > 40
    held = set().union(*(kinds(row.make()) for row in ROWS))
    assert sorted(kind.__name__ for kind in callables - held) == []


#: Those whose kernels in test mode are no part of what training runs.
OF_THE_MODE = [
    row for name in ("rows_normalise", "rows_reparametrise") for row in importlib.import_module(name).ROWS
]


def assert_jit_agrees(rows: Sequence[Row], mode: str) -> None:
    both, key = [(row.layer(), row.inputs()) for row in rows], fl.Key(3)

    def seeded_steps(both: Any, key: Any) -> Any:
        with fl.seeded(key):
            return [step(row, one) for row, one in zip(rows, both, strict=True)]

    with fl.mode(mode):
        found, expected = fl.jit(seeded_steps)(both, key), seeded_steps(both, key)
    for row, mine, other in zip(rows, found, expected, strict=True):
        try:
            close(mine, other)
        except AssertionError as error:
            error.add_note(row.name)
            raise


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        *((row, "train") for row in ROWS),
        *((row, "test") for row in ROWS if row.draws or row in OF_THE_MODE),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_jit_gives_the_outputs_gradients_and_buffers_of_eager(
    row: Row, mode: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "_can_compile", lambda: False)  # the traced graph, without kernels
    assert_jit_agrees([row], mode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "mode"),
    [
        (rows[i : i + 8], mode)
        for mode, rows in (("train", ROWS), ("test", OF_THE_MODE))
        for i in range(0, len(rows), 8)
    ],
)
def test_compiled_they_give_the_outputs_gradients_and_buffers_of_eager(rows: Sequence[Row], mode: str):
    assert_jit_agrees(rows, mode)  # eight in one graph, which compiles in the time of two


@pytest.mark.parametrize(
    ("row", "shape"),
    [(row, s) for row in ROWS for s in row.refused],
    ids=lambda v: getattr(v, "name", str(v)),
)
@both_modes
def test_a_wrong_shape_is_named_with_the_shape_wanted(row: Row, shape: tuple[int, ...], mode: str):
    layer = row.make()
    wanted = row.wanted.replace("{}", re.escape(str(shape)))
    with fl.mode(mode), pytest.raises((ValueError, fl.LayerError), match=wanted):
        layer(torch.zeros(shape))


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_a_wrong_shape_deep_inside_a_chain_names_the_path(row: Row):
    model = fl.Chain(fl.identity, fl.Chain(row.make()))
    wanted = r"\.layers\[1\]\.layers\[0\].*" + row.wanted.replace("{}", re.escape(str(row.refused[0])))
    with pytest.raises(fl.LayerError, match=wanted):
        model(torch.zeros(row.refused[0]))


@pytest.mark.parametrize("row", [row for row in ROWS if row.not_a_tensor], ids=lambda row: row.name)
def test_what_is_no_tensor_is_named_by_its_type(row: Row):
    with pytest.raises((TypeError, ValueError, fl.LayerError), match=r"takes .*found str"):
        row.make()("text")
