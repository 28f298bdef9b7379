"""The promises that every rule keeps, over one table of them all: `rule_cases.CASES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import optree
import pytest
import torch
from rule_cases import CASES, SHAPES, Case, grads_of, model_of, randn, run, started
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import fluxlike as fl
from fluxlike import schedules
from fluxlike.optimisers.rule import rules_in


def each_case(where: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """A test over the cases of the table for which something holds."""
    chosen = {name: case for name, case in CASES.items() if where(case)}
    return pytest.mark.parametrize("case", list(chosen.values()), ids=list(chosen))


class Flat:
    """The tensors of a tree as a list, and the way back."""

    def __init__(self, tree: Any) -> None:
        self._leaves, self._treedef = optree.tree_flatten(tree, none_is_leaf=True, namespace="fluxlike")
        self._places = [i for i, x in enumerate(self._leaves) if isinstance(x, Tensor)]
        self.tensors = [self._leaves[i] for i in self._places]

    def build(self, tensors: Iterable[Tensor]) -> Any:
        """The tree with other tensors."""
        leaves = list(self._leaves)
        for i, x in zip(self._places, tensors, strict=True):
            leaves[i] = x
        return self._treedef.unflatten(leaves)


def tensors(tree: Any) -> list[Tensor]:
    return Flat(tree).tensors


def assert_same(actual: Any, expected: Any, rtol: float = 0.0, **how: Any) -> None:
    """Two trees hold the same numbers, to the bit unless a tolerance is given."""
    pairs = zip(tensors(actual), tensors(expected), strict=True)
    for i, (a, b) in enumerate(pairs):
        assert_close(a, b, rtol=rtol, atol=rtol, equal_nan=True, msg=lambda m: f"tensor {i}: {m}", **how)


def noise(model: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """Gradients that don't depend on where the parameters are."""
    return grads_of({k: torch.zeros_like(x) for k, x in model.items()}, t)


def tolerance(case: Case) -> float:
    """How far two ways to compute the same may differ; Muon computes in bfloat16."""
    return 1e-9 if case.smooth else 2e-2


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small kernels stall with more threads where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The table itself


def is_rule_class(x: Any) -> bool:
    has_methods = callable(getattr(x, "init", None)) and callable(getattr(x, "apply", None))
    return isinstance(x, type) and has_methods and x is not fl.Rule


PUBLIC = {name for name in fl.__all__ if is_rule_class(getattr(fl, name))}


def test_every_public_rule_is_in_the_table() -> None:
    assert len(PUBLIC) >= 32
    in_table = {type(rule).__name__ for case in CASES.values() for rule in rules_in(case.rule)}
    assert not PUBLIC - in_table, f"not in the table: {PUBLIC - in_table}"


# Purity and donation


@each_case()
def test_an_update_changes_none_of_its_arguments(case: Case) -> None:
    model, state = model_of(), fl.setup(case.rule, model_of())
    for t in range(4):
        grads = grads_of(model, t)
        before = [(x, x._version, x.clone()) for x in tensors((state, model, grads))]
        following = fl.update(state, model, grads)
        fl.steps(state, model, grads)
        for x, version, copy in before:
            assert x._version == version
            assert torch.equal(x, copy)
        model, state = following


def usable(x: Tensor) -> bool:
    """Whether a tensor can be used; if not, the error names what to write."""
    if type(x) is Tensor:
        return True
    with pytest.raises(RuntimeError, match=r"fluxlike\.tree\.clone"):
        x.sum()
    return False


@each_case()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_donated_run_gives_the_same_numbers_and_gives_away_what_it_rewrites(
    case: Case, dtype: torch.dtype
) -> None:
    model = model_of(dtype)
    state = fl.setup(case.rule, model)
    mine = fl.tree.clone((model, state))
    given_away = 0
    for t in range(7):
        grads = grads_of(model, t)
        if t == 3:
            grads["vector"] = None
        model, state = fl.update(state, model, grads)
        old = {id(x): (x, x.clone(), x.data_ptr()) for x in tensors(mine)}
        kept = [x.clone() for x in tensors(grads)]
        mine = fl.update(mine[1], mine[0], grads, donate=True)
        assert_same(mine, (model, state))
        assert_same(tensors(grads), kept)
        new = {id(x) for x in tensors(mine)}
        memory = {x.data_ptr() for x in tensors(mine) if x.numel()}
        for key, (x, copy, pointer) in old.items():
            if usable(x):
                assert torch.equal(x, copy)
                assert key in new or pointer not in memory
            else:
                assert key not in new
                given_away += 1
    assert given_away


@each_case()
def test_a_donated_step_leaves_what_does_not_move_usable(case: Case) -> None:
    model, state = started(case.rule, model_of())
    state = fl.freeze(state, "['matrix']")
    still = [model["vector"], model["matrix"], *tensors((state["vector"], state["matrix"].state))]
    copies = [x.clone() for x in still]
    moved, after = fl.update(state, model, {**grads_of(model, 2), "vector": None}, donate=True)
    assert moved["vector"] is model["vector"]
    assert moved["matrix"] is model["matrix"]
    assert after["vector"] is state["vector"]
    assert_same(still, copies)


# One by one


@each_case(lambda case: case.alone)
def test_all_leaves_at_once_move_as_each_alone(case: Case) -> None:
    rule, model = case.rule, model_of()
    state, alone = fl.setup(rule, model), dict(model)
    states = {k: rule.init(x) for k, x in alone.items()}
    for t in range(8):
        taken, _ = fl.steps(state, model, grads_of(model, t))
        grads = grads_of(alone, t)
        model, state = run(model, state, [t])
        for k, x in alone.items():
            states[k], step = rule.apply(states[k], x, grads[k])
            assert_same(taken[k], step, rtol=tolerance(case))
            alone[k] = x - step
            assert_same(state[k].state, states[k], rtol=tolerance(case))
    assert_same(model, alone, rtol=tolerance(case))


# Ready for jit, vmap


@pytest.mark.parametrize("how", ["each input its own", "shared inputs, learning rate too"])
@pytest.mark.parametrize("name", list(CASES))
def test_a_traced_step_gives_the_numbers_of_the_eager_one(name: str, how: str) -> None:
    case, shared = CASES[name], how.startswith("shared")

    def begin(seed: int, lr: float) -> tuple[Any, Any, Any]:
        rate = torch.tensor(lr, dtype=torch.float64) if shared else case.lr
        model, state = started(case.make(rate), model_of(seed=seed), 1)
        return state, model, grads_of(model, 1)

    flat = Flat(begin(0, case.lr))
    keys = [id(x) if shared else i for i, x in enumerate(flat.tensors)]
    order = list(dict.fromkeys(keys))

    def inputs(tree: Any) -> list[Tensor]:
        found = tensors(tree)
        return [found[keys.index(key)].clone() for key in order]

    result: list[Flat] = []

    def step(*values: Tensor) -> list[Tensor]:
        value = dict(zip(order, values, strict=True))
        result[:] = [Flat(fl.update(*flat.build(value[key] for key in keys)))]
        return result[0].tensors

    graph = make_fx(step, tracing_mode="fake")(*inputs(flat.build(flat.tensors)))
    state, model, _ = begin(1, 0.6 * case.lr)
    traced, traced_state = model, state
    for t in range(1, 9):
        grads = grads_of(model, t)
        if "ApplyIfFinite" in name and t == 4:
            grads["vector"] = grads["vector"] * float("inf")
        traced, traced_state = result[0].build(graph(*inputs((traced_state, traced, grads))))
        model, state = fl.update(state, model, grads)
        assert_same((traced, traced_state), (model, state), rtol=tolerance(case))


# A trace holds for one pattern of ties: with another after the first step, the second would be traced anew.
@each_case()
def test_the_tensors_that_a_first_state_shares_are_those_that_later_states_share(case: Case) -> None:
    model, state = model_of(), fl.setup(case.rule, model_of())

    def ties(state: Any) -> list[int]:
        ids = [id(x) for x in tensors(state)]
        return [ids.index(i) for i in ids]

    assert ties(state) == ties(run(model, state, [0])[1])


@each_case()
def test_a_batch_under_vmap_moves_as_its_members(case: Case) -> None:
    members = [started(case.rule, model_of(seed=s), steps=s) for s in range(3)]

    def step(*inputs: Tensor) -> list[Tensor]:
        model, state, grads = flats[0].build(inputs)
        return tensors(fl.update(state, model, grads))

    for t in range(4):
        grads = [grads_of(model, t) for model, _ in members]
        flats = [Flat((*member, g)) for member, g in zip(members, grads, strict=True)]
        stacked = [torch.stack(xs) for xs in zip(*(f.tensors for f in flats), strict=True)]
        batched = torch.vmap(step)(*stacked)
        members = [fl.update(state, model, g) for (model, state), g in zip(members, grads, strict=True)]
        for i, member in enumerate(members):
            assert_same([x[i] for x in batched], tensors(member), rtol=tolerance(case))


# None, frozen, tied


def without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: x for k, x in tree.items() if k != name}


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@pytest.mark.parametrize("how", ["None", "frozen"])
@each_case()
def test_a_parameter_that_rests_keeps_its_objects_and_does_not_touch_the_others(
    case: Case, how: str, donate: bool
) -> None:
    model, state = started(case.rule, model_of())
    if how == "frozen":
        state = fl.freeze(state, "['vector']")
    rest = fl.tree.clone((without(model, "vector"), without(state, "vector")))
    first_model, first_state = model, state
    for t in (2, 3):
        grads = grads_of(model, t)
        if how == "None":
            grads["vector"] = None
        model, state = fl.update(state, model, grads, donate=donate)
        rest = fl.update(rest[1], rest[0], without(grads, "vector"))
        assert model["vector"] is first_model["vector"]
        for a, b in zip(tensors(state["vector"].state), tensors(first_state["vector"].state), strict=True):
            assert a is b
        assert_same((without(model, "vector"), without(state, "vector")), rest)


@pytest.mark.parametrize("how", ["None", "frozen"])
@each_case(lambda case: case.alone)
def test_a_parameter_that_has_rested_goes_on_from_where_it_was(case: Case, how: str) -> None:
    model, state = started(case.rule, model_of())
    alone = started(case.rule, {"vector": model_of()["vector"]})
    if how == "frozen":
        state = fl.thaw(run(model, fl.freeze(state, "['vector']"), [2])[1], "['vector']")
    else:
        model, state = fl.update(state, model, {**grads_of(model, 2), "vector": None})
    for t in (3, 4, 5):
        model, state = run(model, state, [t])
        alone = run(*alone, [t])
        assert_same(model["vector"], alone[0]["vector"])
        assert_same(state["vector"].state, alone[1]["vector"].state)


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@each_case()
def test_a_tied_parameter_moves_once_by_the_sum_of_its_gradients(case: Case, donate: bool) -> None:
    model = model_of()
    w = randn((3, 2), 7)
    tied, untied = fl.tree.clone({"a": w, **model}), {"a": w, **model}
    tied["z"] = tied["a"]
    state, untied_state = fl.setup(case.rule, tied), fl.setup(case.rule, untied)
    for t in range(5):
        grads = noise(untied, t)
        part = randn((3, 2), 100 + t) if t != 2 else None
        total = grads["a"] if part is None else grads["a"] + part
        tied, state = fl.update(state, tied, {**grads, "z": part}, donate=donate and t > 0)
        untied, untied_state = fl.update(untied_state, untied, {**grads, "a": total})
        assert tied["z"] is tied["a"]
        assert state["z"] is state["a"]
        assert_same((without(tied, "z"), without(state, "z")), (untied, untied_state))


# 16 bits, complex numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_case()
def test_a_16_bit_parameter_gets_the_step_of_float32_rounded_once(case: Case, dtype: torch.dtype) -> None:
    half = model_of(dtype)
    state = fl.setup(case.rule, half)
    wide_state = fl.setup(case.rule, {k: x.float() for k, x in half.items()})
    for t in range(5):
        grads = grads_of(half, t)
        wide, wide_state = fl.update(
            wide_state, {k: x.float() for k, x in half.items()}, {k: g.float() for k, g in grads.items()}
        )
        half, state = fl.update(state, half, grads)
        assert_same(half, {k: x.to(dtype) for k, x in wide.items()})
        assert_same(state, wide_state)
    assert {x.dtype for x in tensors(state) if x.is_floating_point()} <= {torch.float32, torch.float64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_master_copy_of_a_16_bit_parameter_runs_in_float32(dtype: torch.dtype) -> None:
    half = model_of(dtype)
    wide = {k: x.float() for k, x in half.items()}
    rule = fl.OptimiserChain(fl.AccumGrad(2), fl.EMA(fl.AdamW(0.01)))
    state, wide_state = fl.setup(fl.MixedPrecision(torch.float32, rule), half), fl.setup(rule, wide)
    for t in range(6):
        grads = noise(half, t)
        half, state = fl.update(state, half, grads)
        wide, wide_state = fl.update(wide_state, wide, {k: g.float() for k, g in grads.items()})
        assert_same(half, {k: x.to(dtype) for k, x in wide.items()})
        assert_same({k: s.state.master for k, s in state.items()}, wide)


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@each_case(lambda case: case.complex)
def test_a_complex_parameter_moves_as_its_real_and_imaginary_parts(case: Case, donate: bool) -> None:
    model = model_of(torch.complex128)
    parts = {k: torch.view_as_real(x).clone() for k, x in model.items()}
    state, parts_state = fl.setup(case.rule, model), fl.setup(case.rule, parts)
    for t in range(5):
        grads = grads_of(model, t)
        model, state = fl.update(state, model, grads, donate=donate)
        real = {k: torch.view_as_real(g) for k, g in grads.items()}
        parts, parts_state = fl.update(parts_state, parts, real)
        assert {x.dtype for x in model.values()} == {torch.complex128}
        assert_same({k: torch.view_as_real(x) for k, x in model.items()}, parts)
        assert_same(state, parts_state)


@each_case(lambda case: not case.complex)
def test_a_rule_for_real_matrices_refuses_a_complex_parameter_by_its_path(case: Case) -> None:
    model = {"fine": torch.ones(2), "deep": [torch.ones(2, 2, dtype=torch.complex64)]}
    with pytest.raises(TypeError, match=r"\['deep'\]\[0\] is a complex parameter"):
        fl.setup(case.rule, model)


# The state is a tree


@each_case()
def test_a_run_goes_on_from_a_file(case: Case, tmp_path: Path) -> None:
    model, state = started(case.rule, model_of(), 3)
    fl.save(tmp_path / "run.safetensors", {"model": model, "state": state})
    like = {"model": model_of(), "state": fl.setup(case.rule, model_of())}
    loaded = fl.load(tmp_path / "run.safetensors", like=like)
    assert_same(run(loaded["model"], loaded["state"], range(3, 7)), run(model, state, range(3, 7)))


@pytest.mark.parametrize("shapes", [SHAPES, {"vector": (4,)}], ids=["", "one leaf"])
@each_case()
def test_a_run_goes_on_after_a_cast_and_a_move(case: Case, shapes: dict[str, tuple[int, ...]]) -> None:
    model, state = started(case.rule, model_of(torch.float32, shapes), 3)
    cast = fl.to_device(fl.f32((model, state)), "cpu")
    expected = run(model, state, range(3, 7))
    assert_same(run(*cast, range(3, 7)), expected, rtol=1e-5, check_dtype=False)
    wide = run(*fl.f64((model, state)), range(3, 5))
    assert {x.dtype for x in tensors(wide) if x.is_floating_point()} == {torch.float64}


@each_case()
def test_a_state_can_stand_on_the_meta_device(case: Case) -> None:
    _, state = started(case.rule, model_of())
    meta = fl.to_device(state, "meta")
    assert all(x.is_meta for x in tensors(meta))
    assert [x.shape for x in tensors(meta)] == [x.shape for x in tensors(state)]


# Differentiable

TINY = {"matrix": (2, 2), "vector": (2,), "number": ()}


def after_four_steps(case: Case, lr: Any, model: dict[str, Tensor]) -> dict[str, Tensor]:
    return run(model, fl.setup(case.make(lr), model), range(4))[0]


@each_case(lambda case: case.smooth)
def test_derivatives_through_steps_equal_differences(case: Case) -> None:
    def moved(lr: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
        # What has a history is differentiated; a leaf that requires grad is read as its value.
        model = {k: x * 1 for k, x in zip(TINY, xs, strict=True)}
        return tuple(after_four_steps(case, lr, model).values())

    inputs = [torch.tensor(case.lr, dtype=torch.float64), *model_of(shapes=TINY, seed=3).values()]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(moved, inputs, eps=1e-6, atol=1e-5, rtol=1e-3)


@each_case(lambda case: case.smooth)
def test_gradient_through_steps_equals_differences(case: Case) -> None:
    def after(model: dict[str, Tensor]) -> Tensor:
        return sum((x**2).sum() for x in after_four_steps(case, case.lr, model).values())

    model, direction = model_of(shapes=TINY, seed=3), model_of(shapes=TINY, seed=4)
    h = 1e-6
    above, below = ({k: x + s * direction[k] for k, x in model.items()} for s in (h, -h))
    slope = fl.tree.dot(fl.gradient(after, model), direction)
    assert_close(slope, (after(above) - after(below)) / (2 * h), rtol=1e-4, atol=1e-6)


@each_case()
def test_gradients_through_steps_exist_and_are_finite_also_at_zero(case: Case) -> None:
    def after(lr: Any, model: dict[str, Tensor], scale: Tensor) -> Tensor:
        state = fl.setup(case.make(lr), model)
        for t in range(4):
            grads = {k: scale * g for k, g in noise(model, t).items()}
            model, state = fl.update(state, model, grads)
        return sum((x**2).sum() for x in model.values())

    model, lr = model_of(), torch.tensor(case.lr, dtype=torch.float64)
    for scale in (1.0, 0.0):
        scale = torch.tensor(scale, dtype=torch.float64)
        slopes = fl.gradient(after, lr, model, scale, argnums=(0, 1, 2))
        assert not fl.find_nonfinite(slopes)
        assert None not in slopes[1].values()
        assert None not in slopes


REQUIRED: dict[str, dict[str, Any]] = {
    "AccumGrad": {"n": 2},
    "ApplyIfFinite": {"rule": fl.Descent()},
    "EMA": {"rule": fl.Descent()},
    "Lookahead": {"rule": fl.Descent()},
    "MixedPrecision": {"dtype": torch.float32, "rule": fl.Descent()},
}


def hyperparameters() -> dict[str, tuple[str, str, int | None]]:
    """Rule, field and place in the field, of every hyperparameter that may be a 0-d tensor."""
    found: dict[str, tuple[str, str, int | None]] = {}
    for name in sorted(PUBLIC):
        for f in dataclasses.fields(getattr(fl, name)):
            if f.type == "Hyper":
                found[f"{name}.{f.name}"] = (name, f.name, None)
            elif "Hyper" in str(f.type):
                places = range(len(f.default))
                found.update({f"{name}.{f.name}[{k}]": (name, f.name, k) for k in places})
    return found


@pytest.mark.parametrize("value", [None, 0.5])
@pytest.mark.parametrize("place", list(hyperparameters()))
def test_the_derivative_by_a_hyperparameter_equals_differences(place: str, value: float | None) -> None:
    name, field, k = hyperparameters()[place]
    if name == "Muon" or field in ("d", "beta2_decay", "etas", "step_sizes"):
        value = None  # for some 0.5 is out of range, for others a kink
    default = {f.name: f.default for f in dataclasses.fields(getattr(fl, name))}[field]
    start = value or (default if k is None else default[k]) or 0.0
    start = 0.01 if 0 <= start < 0.01 else 1.1 if field == "d" else start
    model = model_of(shapes=TINY, seed=3)

    def after(h: Tensor) -> Tensor:
        setting = h if k is None else (*default[:k], h, *default[k + 1 :])
        rule = getattr(fl, name)(**{**REQUIRED.get(name, {}), field: setting})
        if not getattr(rule, "last_alone", False):
            rule = fl.OptimiserChain(rule, fl.Descent(0.1))
        moved = run(model, fl.setup(rule, model), range(3))[0]
        return sum((x**2).sum() for x in moved.values())

    at = torch.tensor(start, dtype=torch.float64)
    slope, h = fl.gradient(after, at), 1e-4 * at
    if name == "Muon":  # which computes in bfloat16
        assert torch.isfinite(slope)
        return
    numeric = (after(at + h) - after(at - h)) / (2 * h)
    assert_close(0.0 if slope is None else float(slope), float(numeric), rtol=1e-4, atol=1e-7)


# Layouts of memory


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@each_case()
def test_the_layout_of_parameters_and_gradients_does_not_matter(case: Case, donate: bool) -> None:
    last = torch.channels_last
    model = {
        "kernel": randn((2, 3, 4, 5), 0).to(memory_format=last),
        "cube": randn((2, 3, 4, 5), 1),
        "matrix": randn((4, 3), 2).T.clone(memory_format=torch.preserve_format),
        "vector": randn((8,), 3)[::2],
        "number": randn((3,), 4)[1],
        "gap": randn((4, 6), 5)[:, ::2],
    }
    if donate:  # what has gaps is refused
        model.update({k: model[k].clone() for k in ("vector", "gap")})
    plain = {k: x.clone(memory_format=torch.contiguous_format) for k, x in model.items()}
    state, plain_state = fl.setup(case.rule, model), fl.setup(case.rule, plain)
    for t in range(4):
        grads = noise(plain, t)
        grads["vector"] = randn((1,), t).expand(4)
        grads["matrix"] = randn((3,), t)[:, None].expand(3, 4)
        odd = {**grads, "cube": grads["cube"].to(memory_format=last), "gap": grads["gap"].T.clone().T}
        if t == 2:
            odd["kernel"] = odd["kernel"].to(memory_format=last)
        model, state = fl.update(state, model, odd, donate=donate)
        plain, plain_state = fl.update(plain_state, plain, {k: g.clone() for k, g in grads.items()})
        assert_same((model, state), (plain, plain_state), rtol=tolerance(case))
        assert model["kernel"].is_contiguous(memory_format=last)


@each_case()
def test_a_sparse_gradient_moves_as_the_dense_one(case: Case) -> None:
    indices = torch.tensor([1, 4, 1])

    def look_up(m: Any, sparse: bool) -> Tensor:
        return (torch.nn.functional.embedding(indices, m["table"], sparse=sparse) ** 2).sum()

    model = {"table": randn((6, 3), 0)}
    state = fl.setup(case.rule, model)
    for _ in range(3):
        sparse, dense = (fl.gradient(look_up, model, s) for s in (True, False))
        assert sparse["table"].is_sparse
        (moved, after), (model, state) = fl.update(state, model, sparse), fl.update(state, model, dense)
        assert_same((moved, after), (model, state), rtol=tolerance(case))


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@each_case()
def test_empty_parameters_pass_beside_others(case: Case, donate: bool) -> None:
    shapes = {"rows": (0, 3), "columns": (3, 0), "none": (0,), "cube": (2, 0, 3), "vector": (4,)}
    model = model_of(shapes=shapes)
    alone = {"vector": model["vector"].clone()}
    state, alone_state = fl.setup(case.rule, model), fl.setup(case.rule, alone)
    for t in range(4):
        model, state = run(model, state, [t], donate=donate)
        alone, alone_state = run(alone, alone_state, [t])
        assert {k: tuple(x.shape) for k, x in model.items()} == shapes
        assert_same(model["vector"], alone["vector"])


LARGE = randn((1_100_010,), 0, torch.float32)


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@each_case(lambda case: case.elementwise)
def test_a_leaf_that_is_cut_into_blocks_moves_as_its_parts(case: Case, donate: bool) -> None:
    n, parts = 1_100_001, 8
    model = {"large": LARGE[:n].clone(), "vector": torch.ones(4)}
    apart = {str(i): x.clone() for i, x in enumerate(model["large"].chunk(parts))}
    state, apart_state = fl.setup(case.rule, model), fl.setup(case.rule, apart)
    for t in range(3):
        g = LARGE[t + 1 : t + 1 + n]
        grads = {"large": g, "vector": torch.ones(4)}
        model, state = fl.update(state, model, grads, donate=donate)
        pieces = {str(i): x for i, x in enumerate(g.chunk(parts))}
        apart, apart_state = fl.update(apart_state, apart, pieces)
    assert_same(model["large"], torch.cat(list(apart.values())), rtol=1e-6)


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@pytest.mark.parametrize(("rule", "theirs"), [(fl.NAdam, torch.optim.NAdam), (fl.Adam, torch.optim.Adam)])
def test_a_large_leaf_beside_small_ones_equals_torch(rule: Any, theirs: Any, donate: bool) -> None:
    shapes = {"large": (1101, 1000), "vector": (4,), "number": ()}
    model = model_of(torch.float32, shapes)
    copies = {k: x.clone().requires_grad_() for k, x in model.items()}
    state, optimiser = fl.setup(rule(0.01), model), theirs(list(copies.values()), 0.01)
    for t in range(3):
        grads = noise(model, t)
        model, state = fl.update(state, model, grads, donate=donate)
        for k, g in grads.items():
            copies[k].grad = g.clone()
        optimiser.step()
    assert_same(model, {k: x.detach() for k, x in copies.items()}, rtol=2e-6)


# Around every rule


@pytest.mark.parametrize("clip", [fl.ClipGlobalNorm(1.0), fl.ApplyIfFinite(fl.ClipGrad(0.1))])
def test_a_schedule_does_not_part_the_leaves_of_the_rule_inside_it(clip: Any) -> None:
    rule = fl.OptimiserChain(clip, fl.Descent(1.0))
    scheduled = fl.Scheduled(rule, lr=schedules.Constant(1.0))
    model = {"a": torch.zeros(2), "b": torch.zeros(2)}
    grads = {"a": torch.tensor([3.0, float("inf")]), "b": torch.tensor([3.0, 4.0])}
    if isinstance(clip, fl.ClipGlobalNorm):
        grads["a"] = torch.tensor([1.0, 2.0])
    taken = []
    for r in (rule, scheduled):
        _, state = fl.update(fl.setup(r, model), model, {"a": grads["b"], "b": None})
        taken.append(fl.steps(state, model, grads)[0])
    assert_same(*taken)


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@each_case()
def test_every_rule_steps_by_the_mean_of_accumulated_gradients(case: Case, donate: bool) -> None:
    model = model_of()
    mine, state = model_of(), fl.setup(fl.OptimiserChain(fl.AccumGrad(2), case.rule), model_of())
    expected = fl.setup(case.rule, model)
    for t in range(5):
        first, second = noise(model, 2 * t), noise(model, 2 * t + 1)
        still = fl.tree.clone(mine)
        mine, state = fl.update(state, mine, first, donate=donate)
        assert_same(mine, still)
        mine, state = fl.update(state, mine, second, donate=donate)
        mean = {k: (first[k] + second[k]) / 2 for k in model}
        model, expected = fl.update(expected, model, mean)
        assert_same(mine, model, rtol=tolerance(case))


@pytest.mark.parametrize("donate", [False, True], ids=["", "donated"])
@each_case()
def test_every_rule_can_skip_a_step_that_is_not_finite(case: Case, donate: bool) -> None:
    model = model_of()
    mine, state = model_of(), fl.setup(fl.ApplyIfFinite(case.rule), model_of())
    expected = fl.setup(case.rule, model)
    for t in range(6):
        grads = noise(model, t)
        if t in (1, 4):
            bad = {**grads, "kernel": grads["kernel"] * float("nan")}
            mine, state = fl.update(state, mine, bad, donate=donate)
        mine, state = fl.update(state, mine, grads, donate=donate)
        model, expected = fl.update(expected, model, grads)
        assert_same(mine, model, rtol=tolerance(case))
        inner = {k: entry.state.inner for k, entry in state.items()}
        assert_same(inner, {k: entry.state for k, entry in expected.items()}, rtol=tolerance(case))
    assert {int(entry.state.skipped) for entry in state.values()} == {2}


# Every rule optimises


def trained(rule: Any, model: Any, loss: Callable[[Any], Tensor], steps: int) -> float:
    state = fl.setup(rule, model)
    for _ in range(steps):
        model, state = fl.update(state, model, fl.gradient(loss, model), donate=True)
    return float(loss(model))


def rosenbrock(m: dict[str, Tensor]) -> Tensor:
    x, y = m["x"]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@each_case()
def test_every_rule_descends_rosenbrocks_valley(case: Case) -> None:
    lr, steps, bound = case.rosenbrock
    start = {"x": torch.tensor([-1.0, 1.0], dtype=torch.float64)}
    assert trained(case.make(lr), start, rosenbrock, steps) < bound


@each_case()
def test_every_rule_fits_a_linear_regression(case: Case) -> None:
    x, weight = randn((20, 3), 0), randn((2, 3), 1)
    y = x @ weight.T + 0.5

    def loss(m: dict[str, Tensor]) -> Tensor:
        return ((x @ m["weight"].T + m["bias"] - y) ** 2).mean()

    lr, bound = case.regression
    start = {"weight": randn((2, 3), 2), "bias": randn((2,), 3)}
    assert loss(start) > 1
    assert trained(case.make(lr), start, loss, 100) < bound


# Wrong hyperparameters

RATES = ("betas", "momentum", "alpha", "rho", "decay")  # Lookahead's alpha alone may be 1 or more
NO_NUMBER = ["0.1", None, [torch.ones(2)], (0.1, 0.2), torch.ones(2), 1j, float("nan"), True, float]


def wrong_values(name: str, field: dataclasses.Field[Any]) -> list[Any]:
    """Values that a field of a rule, a number or a tuple of them, can't have; none for another field."""
    wrong = [*NO_NUMBER, 1.0 if field.name == "beta2_decay" else -1.0]
    if field.name in RATES and name != "Lookahead":
        wrong += [1.0, 1.5]
    if field.type in ("Hyper", "float"):
        return wrong
    if field.type == "int":
        return [*wrong, 2.5]
    if not str(field.type).startswith("tuple") or name in ("OptimiserChain", "Scheduled"):
        return []
    numbers = field.default
    if field.name == "ns_coefficients":
        wrong.pop()
    inside = [(*numbers[:i], v, *numbers[i + 1 :]) for v in wrong for i in range(len(numbers))]
    if field.name == "eps":  # the first may be None
        inside = [v for v in inside if v[0] is not None]
    return [numbers[:1], (*numbers, numbers[-1]), 0.5, "ab", None, [torch.ones(2)] * 4, *inside]


NUMBERS = {
    f"{name}.{field.name}": (name, field)
    for name in sorted(PUBLIC)
    for field in dataclasses.fields(getattr(fl, name))
    if wrong_values(name, field)
}


@pytest.mark.parametrize("place", list(NUMBERS))
def test_wrong_hyperparameters_are_refused_by_name(place: str) -> None:
    name, field = NUMBERS[place]
    accepted = []
    for value in wrong_values(name, field):
        try:
            getattr(fl, name)(**{**REQUIRED.get(name, {}), field.name: value})
        except (TypeError, ValueError) as error:
            if field.name in str(error):
                continue
        accepted.append(value)
    assert not accepted


@pytest.mark.parametrize("name", ["Adafactor", "Muon", "Adam", "ScheduleFree"])
def test_autocast_does_not_change_the_numbers(name: str) -> None:
    rule = CASES[name].rule
    model = model_of(torch.float32)
    expected, _ = started(rule, model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = started(rule, model)
    assert all(torch.equal(found[k], expected[k]) for k in model)
