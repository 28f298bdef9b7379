"""What a wrapped module must do as torch does, for every model of the parity table.

Both sides train once for each model, and the promises look at what they did.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from wrapped_models import Batch, Wrapped, shaken

import fluxlike as fl
from fluxlike.trees.paths import dotted
from fluxlike.trees.structure import flatten, structure_of

STEPS = 5
#: The rate, and an `eps` for which gradients that are zero but for rounding, as that of a bias before a
#: BatchNorm, do not move anything.
ADAM = {"lr": 1e-3, "eps": 1e-4}


class Parity:
    """One model of the table on both sides.

    Attributes:
        batch: its inputs.
        module: torch's module, which nobody may change.
        before: what it held before it was wrapped.
        model: the module as a tree.
        theirs: what torch made of a copy of the module.
        ours: what we made of the tree.
    """

    def __init__(self, wrapped: Wrapped) -> None:
        self.wrapped, self.batch = wrapped, wrapped.batch()
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what packages say of their own defaults
            self.module = shaken(wrapped.build()).train()
        self.before = photograph(self.module)
        self.model = fl.from_torch(self.module)
        self.theirs, self.ours = _of_torch(self), _of_fluxlike(self)


class _Training:
    """What a few steps of training gave on one side.

    Attributes:
        tested: the output in test mode, before training.
        first: loss and output of the first step.
        gradients: of the first step.
        trained: the module or model afterwards.
    """

    tested: Any
    first: tuple[Tensor, Any]
    gradients: Any
    trained: Any


def _of_torch(parity: Parity) -> _Training:
    module, loss, seen = copy.deepcopy(parity.module), parity.wrapped.loss, _Training()
    with torch.no_grad():
        seen.tested = loss(module.eval(), parity.batch)
    module.train()
    optimiser = torch.optim.Adam(module.parameters(), **ADAM)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimiser.zero_grad()
        value = loss(module, parity.batch)
        value[0].backward()
        if step == 0:
            seen.first = value
            seen.gradients = {
                name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()
            }
        optimiser.step()
    seen.trained = module
    return seen


def _of_fluxlike(parity: Parity) -> _Training:
    model, loss, seen = parity.model, parity.wrapped.loss, _Training()
    seen.tested = loss(model, parity.batch)
    state = fl.setup(fl.Adam(**ADAM), model)
    for step in range(STEPS):
        torch.manual_seed(step)
        value, grads = fl.withgradient(loss, model, parity.batch)
        if step == 0:
            seen.first, seen.gradients = value, grads
        model, state = fl.update(state, model, grads)
    seen.trained = model
    return seen


class Promises:
    """The tests that every model of the table passes; a subclass gives the fixture ``parity``."""

    def test_outputs_are_those_of_the_module_in_test_mode(self, parity: Parity) -> None:
        same(parity.ours.tested, parity.theirs.tested)

    def test_outputs_are_those_of_the_module_in_train_mode_with_its_draws(self, parity: Parity) -> None:
        same(parity.ours.first, parity.theirs.first)
        assert not any(x.requires_grad for x in tensors(parity.ours.first))

    def test_gradients_are_those_of_backward_by_name(self, parity: Parity) -> None:
        found = leaves_by_name(parity.ours.gradients)
        for name, expected in parity.theirs.gradients.items():
            same({name: found.pop(name)}, {name: expected})
        for name, x in found.items():  # buffers, frozen parameters, and the later places of tied ones
            assert x is None or isinstance(x, fl.Assigned), name

    def test_steps_of_training_are_those_of_torch(self, parity: Parity) -> None:
        found, expected = leaves_by_name(parity.ours.trained), tensors_by_name(parity.theirs.trained)
        assert {n for n, x in found.items() if isinstance(x, Tensor)} == expected.keys()
        same({n: found[n] for n in expected}, expected)
        before = tensors_by_name(parity.module)
        assert any(not torch.equal(x, before[n]) for n, x in expected.items())

    def test_the_module_is_left_as_it_was(self, parity: Parity) -> None:
        assert photograph(parity.module) == parity.before

    def test_weights_share_the_memory_of_the_module_until_the_first_update(self, parity: Parity) -> None:
        theirs, ours = tensors_by_name(parity.module), leaves_by_name(parity.model)
        copied = [n for n, x in theirs.items() if address(ours[n]) != address(x)]
        assert all(".parametrizations.weight.original" in n for n in copied), (
            copied
        )  # see test_wrapped_in_use
        trained = [p for p in parity.module.parameters() if p.requires_grad]
        assert [tuple(x.shape) for x in fl.trainables(parity.model)] == [tuple(p.shape) for p in trained]

    def test_ties_last(self, parity: Parity) -> None:
        expected = partition(tensors_by_name(parity.module))
        for tree in (parity.model, parity.ours.trained, fl.f32(parity.model), fl.tree.clone(parity.model)):
            leaves = {n: x for n, x in leaves_by_name(tree).items() if isinstance(x, Tensor)}
            assert partition(leaves) == expected

    def test_saving_loading_and_state_dicts(self, parity: Parity, tmp_path: Any) -> None:
        fl.save(tmp_path / "model.safetensors", parity.ours.trained)
        loaded = fl.load(tmp_path / "model.safetensors", like=parity.model)
        assert identical(loaded, parity.ours.trained)
        restored = fl.load_state_dict(parity.model, fl.state_dict(parity.ours.trained))
        assert identical(restored, parity.ours.trained)
        same(
            parity.wrapped.loss(restored, parity.batch),
            parity.wrapped.loss(parity.ours.trained, parity.batch),
        )

    def test_it_prints_with_its_parameters_counted(self, parity: Parity) -> None:
        count = f"{sum(p.numel() for p in parity.module.parameters() if p.requires_grad):_} parameters"
        text = repr(parity.model)
        assert text.startswith(type(parity.module).__name__)
        assert count in text
        assert count in str(fl.summary(parity.model))

    def test_activations_are_the_outputs_that_hooks_of_torch_see(self, parity: Parity) -> None:
        found: dict[str, Any] = {}

        def listened(*args: Any, **kwargs: Any) -> Any:
            found.update(fl.activations(parity.model, *args, **kwargs))
            return found[""]

        with fl.mode("test"):
            parity.wrapped.loss(listened, parity.batch)
        by_name = {dotted(p.partition(" (")[0]) + "".join(p.partition(" (")[1:]): y for p, y in found.items()}
        expected = outputs_by_name(parity)
        assert by_name.keys() >= expected.keys()
        for name, y in expected.items():
            same(by_name[name], y)

    def test_the_table_of_layers_says_their_shapes_or_what_asks_for_a_value(self, parity: Parity) -> None:
        def summarised(*args: Any, **kwargs: Any) -> Any:
            rows.extend(fl.summary(parity.model, *args, **kwargs).layers)
            return parity.model(*args, **kwargs)

        rows: list[Any] = []
        asks = ASKS_FOR_A_VALUE.get(type(parity.module).__name__)
        if asks is not None:
            with pytest.raises(RuntimeError, match=rf"value of a tensor .*{asks}.*summary\(model\) without"):
                parity.wrapped.loss(summarised, parity.batch)
            return
        with fl.mode("test"):
            parity.wrapped.loss(summarised, parity.batch)
        outputs = {dotted(row.path): row.output for row in rows}
        for name, y in outputs_by_name(parity).items():
            if isinstance(y, Tensor) and " (call" not in name:
                assert outputs[name].startswith(str(tuple(y.shape))), name

    def test_casts_run(self, parity: Parity) -> None:
        single = fl.f32(parity.model)
        batch = fl.f32(parity.batch)
        loss, _ = parity.wrapped.loss(single, batch)
        expected = parity.theirs.tested[0].double()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-4)

    def test_a_gradient_with_respect_to_a_part_is_that_part_of_the_whole(self, parity: Parity) -> None:
        (path, _), *_ = reversed(fl.trainables(parity.model, paths=True))
        torch.manual_seed(0)
        part = fl.gradient(only_loss(parity), parity.model, parity.batch, wrt=path)
        whole = leaves_by_name(parity.ours.gradients)
        found = {n: x for n, x in leaves_by_name(part).items() if isinstance(x, Tensor)}
        same(found, {n: whole[n] for n in found})
        assert list(found) == ([dotted(path)] if whole[dotted(path)] is not None else [])

    def test_rules_by_path_and_frozen_parts(self, parity: Parity) -> None:
        (first, x), *_, (last, _) = fl.trainables(parity.model, paths=True)
        leaves, treedef = flatten(parity.model)
        tied = {p for p, y in zip(structure_of(treedef).paths, leaves, strict=True) if y is x}
        state = fl.setup(lambda path: fl.Descent(0.5 if path in tied else 0.0), parity.model)
        state = fl.freeze(state, last)
        model, _ = fl.update(state, parity.model, parity.ours.gradients)
        before, after = leaves_by_name(parity.model), leaves_by_name(model)
        gradient = leaves_by_name(parity.ours.gradients)[dotted(first)]
        step = 0.0 if gradient is None else 0.5 * gradient
        torch.testing.assert_close(after[dotted(first)], before[dotted(first)].detach() - step)
        assert after[dotted(last)] is before[dotted(last)]

    def test_forward_is_pure_but_for_its_draws(self, parity: Parity) -> None:
        report = fl.check_pure(only_loss(parity), parity.model, parity.batch)
        assert report, report


#: What a model can't be followed over without values: a mixture's choice of experts, a check of labels.
ASKS_FOR_A_VALUE = {"MixtralForCausalLM": "nonzero", "Wav2Vec2ForCTC": r"\.item\(\)"}


def outputs_by_name(parity: Parity) -> dict[str, Any]:
    """What each module of torch returns in test mode, as hooks see it, under the names of `activations`."""
    module, seen = copy.deepcopy(parity.module).eval(), {}
    for name, m in module.named_modules():

        def note(m: nn.Module, args: Any, out: Any, name: str = name) -> None:
            count = sum(key.partition(" (")[0] == name for key in seen) + 1
            label = name if count == 1 else f"{name} (call {count})"
            seen[label] = _pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), out)

        m.register_forward_hook(note)
    with torch.no_grad():
        parity.wrapped.loss(module, parity.batch)
    return seen


def only_loss(parity: Parity) -> Any:
    def loss(model: Any, batch: Batch) -> Tensor:
        return parity.wrapped.loss(model, batch)[0]

    return loss


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """Every leaf of a tree, under the name that torch gives its path."""
    leaves, treedef = flatten(tree)
    return {dotted(p): x for p, x in zip(structure_of(treedef).paths, leaves, strict=True)}


def tensors_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a module, a tied one under all its names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def address(x: Tensor) -> int:
    """Where the content of a tensor is; `Tensor.data_ptr` would give it memory of its own."""
    return torch._C._data_address(x)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def same(found: Any, expected: Any) -> None:
    """Trees of one structure whose tensors agree to 1e-10 of their scale."""
    left, treedef = _pytree.tree_flatten(found)
    right, other = _pytree.tree_flatten(expected)
    assert treedef == other
    for x, y in zip(left, right, strict=True):
        if isinstance(y, Tensor):
            scale = y.abs().max().item() if y.numel() and y.is_floating_point() else 0.0
            torch.testing.assert_close(x, y.detach(), rtol=1e-10, atol=1e-10 * max(scale, 1e-3))
        else:
            assert x is None if y is None else type(x) is type(y)


def partition(named: dict[str, Tensor]) -> set[frozenset[str]]:
    """Which names are of one tensor."""
    groups: dict[int, set[str]] = {}
    for name, x in named.items():
        groups.setdefault(id(x), set()).add(name)
    return {frozenset(names) for names in groups.values()}


def identical(a: Any, b: Any) -> bool:
    """Whether two trees are of one structure, with the same bits and ties."""
    mine, theirs = leaves_by_name(a), leaves_by_name(b)
    tensors_alike = all(
        torch.equal(x, theirs[n]) and x.dtype == theirs[n].dtype
        for n, x in mine.items()
        if isinstance(x, Tensor)
    )
    return mine.keys() == theirs.keys() and tensors_alike


def photograph(module: nn.Module) -> list[Any]:
    """All that a module holds: its tensors with their bits and memory, and every attribute by identity."""
    seen: list[Any] = []
    for path, m in module.named_modules(remove_duplicate=False):
        for name, x in vars(m).items():
            held = dict(x) if isinstance(x, dict) else {"": x}
            seen.append((path, name, id(x), {k: _seen(v) for k, v in held.items()}))
    return seen


def _seen(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return id(x)
    bits = x.detach().clone().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
    return id(x), x._version, x.requires_grad, x.grad is None, hash(bits)
