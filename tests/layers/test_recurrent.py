"""Recurrent layers and cells: what they promise beside the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fluxlike as fl
from fluxlike._private import functorch
from fluxlike._private.compiler import build
from fluxlike.layers import lengths as lengths_file
from fluxlike.layers.recurrent import sequence

LAYERS = [fl.RNN, fl.LSTM, fl.GRU]
CELLS = [fl.RNNCell, fl.LSTMCell, fl.GRUCell]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda c: c.__name__)
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.__name__)

TORCHS = {fl.RNN: nn.RNN, fl.LSTM: nn.LSTM, fl.GRU: nn.GRU}
TORCHS_CELLS = {fl.RNNCell: nn.RNNCell, fl.LSTMCell: nn.LSTMCell, fl.GRUCell: nn.GRUCell}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def exact(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def same(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    for mine, other in zip(fl.fleaves(actual), fl.fleaves(expected), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


# Construction


@every_layer
def test_it_starts_with_the_numbers_of_torchs_layer(layer: Any):
    torch.manual_seed(3)
    mine = layer(3, 4, num_layers=2, bidirectional=True)
    torch.manual_seed(3)
    theirs = TORCHS[layer](3, 4, 2, bidirectional=True)
    for a, b in zip(fl.fleaves(mine), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@every_cell
def test_a_cell_starts_with_the_numbers_of_torchs_cell(cell: Any):
    torch.manual_seed(3)
    mine = cell(3, 4)
    torch.manual_seed(3)
    for a, b in zip(fl.fleaves(mine), TORCHS_CELLS[cell](3, 4).parameters(), strict=True):
        assert torch.equal(a, b)


@every_layer
def test_a_key_decides_the_first_numbers(layer: Any):
    def make(seed: int) -> Any:
        with fl.seeded(fl.Key(seed)):
            return layer(3, 4)

    assert fl.tree.allclose(make(1), make(1))
    assert not fl.tree.allclose(make(1), make(2))
    assert max(t.abs().max() for t in fl.fleaves(make(1))) <= 0.5


def test_torchs_parameters_have_their_places_by_layer_and_direction():
    theirs = nn.GRU(3, 4, 2, bidirectional=True, batch_first=True).double()
    mine = fl.f64(fl.GRU(3, 4, num_layers=2, bidirectional=True))
    d = theirs.state_dict()
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    for cell, suffix in zip(mine.cells, suffixes, strict=True):
        for name in names:
            getattr(cell, name).copy_(d[f"{name}_{suffix}"])
    x = floats(2, 5, 3)
    exact(mine(x), theirs(x)[0].detach())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: fl.LSTM(3, 4, num_layers=0),
            ValueError,
            "LSTM: num_layers=0; write a whole number",
        ),
        (lambda: fl.GRU(3, 0), ValueError, "GRUCell: hidden_size=0; write a whole number, at least 1"),
        (lambda: fl.LSTM(0, 6), ValueError, "LSTMCell: input_size=0; write a whole number, at least 1"),
        (lambda: fl.RNN(3.0, 6), TypeError, "RNNCell: input_size=3.0; write a whole number"),
        (lambda: fl.RNN(3, 6, num_layers=1.5), TypeError, "RNN: num_layers=1.5; write a whole number"),
        (lambda: fl.LSTM(3, 6, bidirectional=2), TypeError, "bidirectional=2; write True or False"),
        (
            lambda: fl.RNN(3, 4, num_layers=2, dropout=1.5),
            ValueError,
            r"RNN\(dropout=1.5\): write a probability",
        ),
        (
            lambda: fl.LSTM(3, 4, dropout=0.1),
            ValueError,
            r"between layers.*Chain\(LSTM\(…\), Dropout\(0.1\)\)",
        ),
        (lambda: fl.RNN(3, 4, "relu"), TypeError, "write fl.relu"),
        (lambda: fl.RNNCell(3, 4, nn.Tanh), TypeError, r"write Tanh\(\)"),
        (lambda: fl.Recurrence(3), TypeError, r"y, state = cell\(x, state\); found 3"),
        (lambda: fl.Recurrence(fl.GRUCell), TypeError, "Recurrence takes a cell"),
    ],
)
def test_a_wrong_constructor_says_what_to_write(make: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


# Wrong input


@every_layer
def test_one_sequence_without_a_batch_is_an_error(layer: Any):
    with pytest.raises(
        ValueError, match=r"takes the shape \(N, L, 3\), found \(5, 3\); for one sequence.*x\[None\]"
    ):
        layer(3, 4)(torch.zeros(5, 3))


@pytest.mark.parametrize(
    "make", [*(lambda c=c: c(3, 4) for c in LAYERS), lambda: fl.Recurrence(fl.GRUCell(3, 4))]
)
def test_sequences_without_a_step_are_an_error(make: Any):
    with pytest.raises(ValueError, match=r"at least one step, found the shape \(2, 0, 3\)"):
        make()(torch.zeros(2, 0, 3))


def test_a_state_of_another_form_is_an_error():
    x, lstm, gru = torch.zeros(2, 5, 3), fl.LSTM(3, 4), fl.GRU(3, 4, num_layers=3)
    h = torch.zeros(2, 1, 4)
    with pytest.raises(
        TypeError, match=r"LSTM takes a tuple \(h, c\) of two tensors as its state, found Tensor"
    ):
        lstm(x, h)
    with pytest.raises(TypeError, match="found a tuple of 3"):
        lstm(x, (h, h, h))
    with pytest.raises(TypeError, match="found NoneType in it"):
        lstm(x, (h, None))
    with pytest.raises(TypeError, match="GRU takes a tensor as its state, found a tuple of 2"):
        gru(x, (h, h))
    with pytest.raises(ValueError, match=r"of shape \(2, 3, 4\) for this input, found \(2, 1, 4\)$"):
        gru(x, h)
    with pytest.raises(ValueError, match=r"found \(3, 2, 4\); the batch comes first here.*transpose\(0, 1\)"):
        gru(x, torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match=r"LSTMCell takes a state of shape \(2, 4\).*found \(3, 4\)"):
        fl.LSTMCell(3, 4)(torch.zeros(2, 3), (torch.zeros(3, 4), torch.zeros(3, 4)))


@pytest.mark.parametrize("make", [*LAYERS, *CELLS], ids=lambda c: c.__name__)
def test_another_dtype_or_device_is_named(make: Any):
    x = torch.zeros(2, 3) if make in CELLS else torch.zeros(2, 5, 3)
    layer = make(3, 4)
    with pytest.raises(ValueError, match=r"holds float32, its input is float64; write x.to\(torch.float32\)"):
        layer(x.double())
    with pytest.raises(ValueError, match="is on cpu, its input on meta"):
        layer(x.to("meta"))
    state = fl.fmap(lambda t: t.double(), layer.initial_state(x))
    with pytest.raises(ValueError, match="holds float32, its input is float64"):
        layer(x, state)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([2, 3], TypeError, r"lengths as a tensor of integers, found list; write torch.tensor\(\[…\]\)"),
        (torch.tensor([2.0, 3.0]), TypeError, "found torch.float32"),
        (torch.tensor([2, 3, 3]), ValueError, r"one length a sequence, \(2,\) here, found \(3,\)"),
        (torch.tensor([0, 3]), ValueError, "lengths from 1 to 5 here, found 0 to 3"),
        (torch.tensor([2, 6]), ValueError, "lengths from 1 to 5 here, found 2 to 6"),
    ],
)
@pytest.mark.parametrize("make", [lambda: fl.LSTM(3, 4), lambda: fl.Recurrence(fl.GRUCell(3, 4))])
def test_wrong_lengths_are_named(make: Any, lengths: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()(torch.zeros(2, 5, 3), lengths=lengths)


@pytest.mark.parametrize("make", [*LAYERS, lambda *n: fl.Recurrence(fl.GRUCell(*n))])
def test_lengths_without_values_are_taken_as_they_are(make: Any):
    x = torch.zeros(2, 5, 3)
    layer = fl.to_device(make(3, 4), "meta")
    assert layer(x.to("meta"), lengths=torch.tensor([2, 5])).shape == (2, 5, 4)
    with pytest.raises(ValueError, match="from 1 to 5 here, found 2 to 6"):
        layer(x.to("meta"), lengths=torch.tensor([2, 6]))


@every_layer
def test_lengths_that_can_be_read_at_a_cost_are_checked_where_the_kernel_reads_them(
    layer: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lengths_file, "readable", lambda x: False)  # as on a GPU
    for lengths in ([0, 3], [2, 6]):
        with pytest.raises(ValueError, match=rf"from 1 to 5 here, found {lengths[0]} to {lengths[1]}"):
            layer(3, 4)(torch.zeros(2, 5, 3), lengths=torch.tensor(lengths))


# Sequences


@every_layer
def test_a_sequence_in_two_parts_is_the_whole(layer: Any):
    model, x = fl.f64(layer(3, 4, num_layers=2)), floats(2, 7, 3)
    whole, last = model(x, model.initial_state(x))
    first, state = model(x[:, :3], model.initial_state(x))
    second, end = model(x[:, 3:], state)
    exact(torch.cat([first, second], 1), whole)
    same(end, last, 1e-12)
    exact(model(x), whole)


@every_layer
def test_it_is_its_cells_one_step_at_a_time(layer: Any):
    model, x = fl.f64(layer(3, 4)), floats(2, 6, 3)
    (cell,) = model.cells
    state, outputs = None, []
    for step in x.unbind(1):
        y, state = cell(step, state)
        outputs.append(y)
    exact(model(x), torch.stack(outputs, 1))


@every_layer
def test_one_step_is_a_sequence(layer: Any):
    model, x = fl.f64(layer(3, 4)), floats(2, 1, 3)
    y, _ = model.cells[0](x[:, 0])
    exact(model(x), y[:, None])


@every_layer
def test_it_stands_in_a_chain(layer: Any):
    model = fl.Chain(fl.Embedding(10, 3), layer(3, 4, bidirectional=True), fl.Dense(8, 2))
    assert model(torch.randint(10, (2, 5))).shape == (2, 5, 2)
    grads = fl.gradient(lambda m: m(torch.randint(10, (2, 5))).sum(), model)
    assert grads.layers[1].cells[1].weight_hh.any()


@every_layer
def test_a_backward_direction_reads_from_the_end(layer: Any):
    model, x = fl.f64(layer(3, 4, bidirectional=True)), floats(2, 6, 3)
    backward = fl.Recurrence(model.cells[1])(x.flip(1)).flip(1)
    exact(model(x)[..., 4:], backward)


def test_a_cell_can_be_exchanged():
    lstm, x = fl.f64(fl.LSTM(3, 4, num_layers=2)), floats(2, 5, 3)
    cell = fl.f64(fl.LSTMCell(4, 4))
    other = fl.at(lstm, lambda m: m.cells[1]).set(cell)
    exact(other(x), fl.Recurrence(cell)(fl.Recurrence(lstm.cells[0])(x)))


def test_cells_of_different_kinds_run_without_a_kernel():
    rnn, x = fl.f64(fl.RNN(3, 4, num_layers=2)), floats(2, 5, 3)
    mixed = fl.at(rnn, lambda m: m.cells[1].activation).set(fl.relu)
    exact(mixed(x), fl.Recurrence(mixed.cells[1])(fl.Recurrence(rnn.cells[0])(x)))


@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
@every_layer
def test_a_missing_bias_is_zero(layer: Any, missing: str):
    model, x = fl.f64(layer(3, 4)), floats(2, 5, 3)
    zero = fl.at(model, lambda m: getattr(m.cells[0], missing)).apply(torch.zeros_like)
    none = fl.at(model, lambda m: getattr(m.cells[0], missing)).set(None)
    exact(none(x), zero(x))
    exact(none.cells[0](x[:, 0])[0], zero.cells[0](x[:, 0])[0])


def test_a_layer_as_activation_is_trained():
    rnn = fl.RNN(3, 4, fl.Dense(4, 4, fl.tanh))
    assert "activation=Dense(4, 4, tanh)" in repr(rnn)
    grads = fl.gradient(lambda m: m(torch.randn(2, 5, 3)).sum(), rnn)
    assert grads.cells[0].activation.weight.any()


class Calls(TorchFunctionMode):
    """Counts the functions of torch that are called."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@every_layer
@pytest.mark.parametrize("ragged", [False, True])
def test_eager_there_is_no_loop_over_time(layer: Any, ragged: bool):
    def calls(steps: int) -> int:
        model, x = layer(3, 4, num_layers=2, bidirectional=True), torch.randn(2, steps, 3)
        options = {"lengths": torch.tensor([steps, 2])} if ragged else {}
        with Calls() as seen:
            model(x, **options)
        return seen.count

    assert calls(5) == calls(50)


# Lengths


@every_layer
@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
)
def test_each_sequence_is_as_it_would_be_alone(
    layer: Any, lengths: list[int], layers: int, bidirectional: bool
):
    model = fl.f64(layer(2, 3, num_layers=layers, bidirectional=bidirectional))
    x = floats(len(lengths), 6, 2)
    start = fl.fmap(torch.randn_like, model.initial_state(x))
    y, state = model(x, start, lengths=torch.tensor(lengths))
    masked, state2 = fl.vmap(lambda x, s, n: rows(model, x, s, n))(x, start, torch.tensor(lengths))
    exact(masked, y)
    same(state2, state, 1e-12)
    for i, n in enumerate(lengths):
        alone, last = model(x[i : i + 1, :n], fl.fmap(lambda t: t[i : i + 1], start))
        exact(y[i : i + 1, :n], alone)
        assert not y[i, n:].any()
        same(fl.fmap(lambda t: t[i : i + 1], state), last, 1e-12)


def rows(model: Any, x: Tensor, state: Any, length: Tensor) -> Any:
    """One sequence as a batch of one."""
    y, new = model(x[None], fl.fmap(lambda t: t[None], state), lengths=length[None])
    return y[0], fl.fmap(lambda t: t[0], new)


@every_layer
def test_what_lies_past_the_end_has_no_effect(layer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    model, x, lengths = fl.f64(layer(3, 4, bidirectional=True)), floats(2, 6, 3), torch.tensor([4, 2])
    other = x.clone()
    other[0, 4:], other[1, 2:] = 1e3, 1e3
    exact(model(x, lengths=lengths), model(other, lengths=lengths))
    for f in (fl.gradient, fl.jit(fl.gradient, static=(0,))):
        grads = f(lambda x: model(x, lengths=lengths).square().sum(), x)
        assert not grads[0, 4:].any()
        assert not grads[1, 2:].any()
        assert grads[1, :2].all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_lengths_of_any_integers(dtype: torch.dtype):
    model, x = fl.f64(fl.GRU(3, 4)), floats(3, 6, 3)
    lengths = torch.tensor([1, 6, 4])
    exact(model(x, lengths=lengths.to(dtype)), model(x, lengths=lengths))


def test_no_sequence_has_no_lengths():
    model = fl.LSTM(3, 4)
    assert model(torch.zeros(0, 5, 3), lengths=torch.zeros(0, dtype=torch.int64)).shape == (0, 5, 4)


# Recurrence


@pytest.mark.parametrize(("layer", "cell"), list(zip(LAYERS, CELLS, strict=True)), ids=["RNN", "LSTM", "GRU"])
def test_a_recurrence_of_the_cell_is_the_layer(layer: Any, cell: Any):
    model, x, lengths = fl.f64(layer(3, 4)), floats(3, 6, 3), torch.tensor([6, 2, 3])
    (only,) = model.cells
    assert type(only) is cell
    recurrence = fl.Recurrence(only)
    exact(recurrence(x), model(x))
    y, state = recurrence(x, recurrence.initial_state(x), lengths=lengths)
    y2, state2 = model(x, model.initial_state(x), lengths=lengths)
    exact(y, y2)
    same(fl.fmap(lambda t: t[:, None], state), state2, 1e-12)


@fl.functor
class Counting:
    """A cell of a user's: sums tokens' vectors, with a tree for its state and for its output."""

    def __init__(self) -> None:
        self.table = fl.Embedding(5, 2)

    def initial_state(self, x: Tensor) -> Any:
        return {
            "sum": self.table.weight.new_zeros(len(x), 2),
            "steps": torch.zeros(len(x), dtype=torch.int64),
        }

    def __call__(self, x: Tensor, state: Any) -> Any:
        total = state["sum"] + self.table(x)
        return {"mean": total / (state["steps"] + 1)[:, None]}, {"sum": total, "steps": state["steps"] + 1}


def test_a_cell_of_a_users_own_runs_over_tokens_with_any_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    model, tokens = fl.Recurrence(fl.f64(Counting())), torch.randint(5, (3, 4))
    vectors = model.cell.table(tokens)
    y, state = model(tokens, model.initial_state(tokens))
    exact(y["mean"], vectors.cumsum(1) / torch.arange(1, 5)[:, None])
    assert state["steps"].tolist() == [4, 4, 4]
    y, state = model(tokens, model.initial_state(tokens), lengths=torch.tensor([4, 1, 2]))
    assert state["steps"].tolist() == [4, 1, 2]
    exact(state["sum"][1], vectors[1, 0])
    assert not y["mean"][1, 1:].any()
    step = lambda m: fl.gradient(lambda m: m(tokens)["mean"].square().sum(), m)  # noqa: E731
    same(fl.jit(step)(model), step(model))


def test_a_cell_without_a_first_state_says_how_to_hand_one_in():
    model = fl.Recurrence(lambda x, h: (h + x, h + x))
    with pytest.raises(TypeError, match=r"has no initial_state\(x\).*recurrence\(x, state\)"):
        model(torch.zeros(2, 3))
    y, _ = model(torch.ones(2, 3), torch.zeros(2))
    assert y.tolist() == [[1, 2, 3]] * 2


def test_an_error_in_a_cell_names_its_path():
    model = fl.Chain(fl.Recurrence(fl.Recurrence(fl.GRUCell(3, 4))))
    with pytest.raises(fl.LayerError, match=r"\.layers\[0\]\.cell.*Recurrence takes"):
        model(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"Recurrence takes the shape \(N, L, …\), found \(5,\)"):
        fl.Recurrence(fl.GRUCell(3, 4))(torch.zeros(5))


# Dropout


@every_layer
def test_dropout_acts_between_layers_in_train_mode_only(layer: Any):
    model = fl.f64(layer(3, 8, num_layers=2, dropout=0.5))
    x = floats(4, 5, 3)
    plain = model(x)
    exact(plain, model(x))
    with fl.mode("train"):
        assert not torch.allclose(model(x), plain)
        exact(fl.testmode(model)(x), plain)
    none = fl.f64(layer(3, 8, num_layers=2, dropout=1.0))
    with fl.mode("train"):
        exact(none(x)[0], none(torch.zeros_like(x))[0])


@every_layer
def test_dropout_under_a_key_is_the_same_eager_traced_and_by_formula(
    layer: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    model, x, key = fl.f64(layer(3, 4, num_layers=3, dropout=0.5)), floats(2, 5, 3), fl.Key(4)

    def run(model: Any, key: Any) -> Any:
        with fl.mode("train"), fl.seeded(key):
            return model(x, model.initial_state(x))

    eager = run(model, key)
    same(run(model, key), eager, 1e-12)
    same(fl.jit(run)(model, key), eager)
    together = fl.vmap(lambda m: run(m, key), randomness="same")(fl.stack([model, model]))
    same(fl.fmap(lambda t: t[1], together), eager)
    assert not torch.allclose(run(model, fl.Key(5))[0], eager[0])


# 16 bits and autocast


@every_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_trains_in_16_bits(layer: Any, dtype: torch.dtype):
    model, x = layer(3, 4, bidirectional=True), torch.randn(2, 5, 3)
    half = fl.fmap(lambda t: t.to(dtype), model)
    grads = fl.gradient(lambda m: m(x.to(dtype)).float().sum(), half)
    wanted = fl.gradient(lambda m: m(x).sum(), model)
    for mine, other in zip(fl.fleaves(grads), fl.fleaves(wanted), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), other, rtol=0.05, atol=0.05)


Call = Any  # of a model, an input and a state


def mapped(call: Call, model: Any, x: Tensor, state: Any) -> Any:
    """Each row as a batch of one."""

    def row(x: Tensor, state: Any) -> Any:
        return fl.fmap(lambda t: t[0], call(model, x[None], fl.fmap(lambda t: t[None], state)))

    return fl.vmap(row)(x, state)


def in_a_gradient(call: Call, model: Any, x: Tensor, state: Any) -> Any:
    def loss(model: Any) -> Any:
        result = call(model, x, state)
        return sum(t.float().sum() for t in fl.fleaves(result)), result

    (_, result), grads = fl.withgradient(loss, model)
    assert {g.dtype for g in fl.fleaves(grads)} == {torch.float32}
    return result


def in_forward_mode(call: Call, model: Any, x: Tensor, state: Any) -> Any:
    return functorch.jvp(lambda x: call(model, x, state), (x,), (torch.ones_like(x),))[0]


WAYS: dict[str, Any] = {
    "eager": lambda call, *inputs: call(*inputs),
    "jit": lambda call, *inputs: fl.jit(call)(*inputs),
    "vmap": mapped,
    "forward mode": in_forward_mode,
    "in a gradient": in_a_gradient,
    "in a gradient, as on a GPU": in_a_gradient,
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    if "GPU" in request.param:
        monkeypatch.setattr(sequence, "_has_every_derivative", lambda x: False)
    return WAYS[request.param]


def torchs(layer: Any, kinds: dict[Any, Any], **options: Any) -> Any:
    """torch's layer with the tensors of one of ours."""
    theirs = kinds[type(layer)](3, 4, **options)
    for a, b in zip(fl.fleaves(layer), theirs.parameters(), strict=True):
        b.data.copy_(a)
    return theirs


def follows_the_rule(result: Any, wanted: Any) -> None:
    """The output in autocast's dtype, the state in its own, the numbers torch's to the bits of bfloat16."""
    y, state = result
    assert y.dtype == torch.bfloat16
    assert {t.dtype for t in fl.fleaves(state)} == {torch.float32}
    for mine, other in zip(*((y, *fl.fleaves(state)) for y, state in (result, wanted)), strict=True):
        torch.testing.assert_close(mine.float(), other.float(), rtol=0.02, atol=0.02)


@every_layer
def test_under_autocast_a_layer_gives_outputs_of_its_dtype_and_states_of_theirs(layer: Any, way: Any):
    model, x = layer(3, 4), torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = torchs(model, TORCHS, batch_first=True)(x)
        result = way(lambda m, x, s: m(x, s), model, x, model.initial_state(x))
    follows_the_rule(result, (y, fl.fmap(lambda s: s.transpose(0, 1), state)))


@every_layer
@pytest.mark.parametrize("name", ["eager", "jit", "forward mode", "in a gradient"])
def test_under_autocast_lengths_change_no_dtype(layer: Any, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)
    model, x, lengths = layer(3, 4), torch.randn(2, 5, 3), torch.tensor([5, 2])
    start = model.initial_state(x)
    with torch.autocast("cpu", torch.bfloat16):
        result = WAYS[name](lambda m, x, s: m(x, s, lengths=lengths), model, x, start)
    follows_the_rule(result, model(x, start, lengths=lengths))


@every_cell
def test_under_autocast_a_cell_gives_outputs_of_its_dtype_and_states_of_theirs(cell: Any, way: Any):
    model, x = cell(3, 4), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        new = torchs(model, TORCHS_CELLS)(x)
        result = way(lambda m, x, s: m(x, s), model, x, model.initial_state(x))
    follows_the_rule(result, (new[0] if isinstance(new, tuple) else new, new))


@every_cell
def test_under_autocast_a_cell_over_time_is_the_layer(cell: Any, way: Any):
    layer = LAYERS[CELLS.index(cell)](3, 4)
    x, model = torch.randn(2, 5, 3), fl.Recurrence(layer.cells[0])
    with torch.autocast("cpu", torch.bfloat16):
        result = way(lambda m, x, s: m(x, s), model, x, model.initial_state(x))
        y, state = layer(x, layer.initial_state(x))
    follows_the_rule(result, (y, fl.fmap(lambda s: s[:, 0], state)))


@every_layer
def test_under_autocast_the_numbers_are_those_of_torchs_layer(layer: Any):
    model, x = layer(3, 4), torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = torchs(model, TORCHS, batch_first=True)(x)[0]
        assert torch.equal(model(x), y.bfloat16())  # nn.GRU's are float32 on the CPU, unlike on CUDA
        assert fl.f64(model)(x.double()).dtype == torch.float64  # which autocast leaves alone
        assert fl.f64(model).cells[0](x[:, 0].double())[0].dtype == torch.float64


@pytest.mark.parametrize("make", [*LAYERS, *CELLS], ids=lambda c: c.__name__)
def test_under_autocast_16_bits_come_in_from_the_layer_before(make: Any):
    model = fl.Chain(fl.Dense(3, 3), make(3, 4))
    x = torch.randn(2, 3) if make in CELLS else torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert (y[0] if make in CELLS else y).dtype == torch.bfloat16
