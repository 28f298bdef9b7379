from __future__ import annotations

import pytest
import torch

import fluxlike as fl


def test_rows_are_looked_up_by_index():
    table = fl.Embedding(4, 2, init=lambda shape: torch.arange(8.0).reshape(shape))
    assert table(torch.tensor([3, 0])).tolist() == [[6.0, 7.0], [0.0, 1.0]]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0, 4)], ids=str)
def test_output_has_one_axis_more(shape):
    assert fl.Embedding(4, 2)(torch.zeros(shape, dtype=torch.long)).shape == (*shape, 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_integers_of_any_width_are_indices(dtype):
    table = fl.Embedding(4, 2)
    assert torch.equal(table(torch.tensor([3, 0], dtype=dtype)), table.weight[[3, 0]])


@pytest.mark.parametrize(
    ("indices", "found"),
    [
        (torch.zeros(2), "torch.float32"),
        (torch.zeros(2, dtype=torch.bool), "torch.bool"),
        (torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
        (3, "int"),
        ([1, 2], "list"),
    ],
    ids=["float", "bool", "complex", "int", "list"],
)
def test_what_is_no_tensor_of_integers_is_an_error_that_names_it(indices, found):
    with pytest.raises(TypeError, match=rf"Embedding takes a tensor of integers, found {found}"):
        fl.Embedding(4, 2)(indices)


@pytest.mark.parametrize(("indices", "text"), [([1, 4], "from 1 to 4"), ([-1, 2], "from -1 to 2")])
def test_an_index_outside_the_table_is_an_error_with_the_range_found(indices, text):
    with pytest.raises(IndexError, match=rf"Embedding has 4 vectors, found indices {text}"):
        fl.Embedding(4, 2)(torch.tensor(indices))


def test_the_gradient_is_dense_and_counts_repeated_indices():
    grads = fl.gradient(lambda m: m(torch.tensor([2, 0, 2])).sum(), fl.Embedding(4, 1))
    assert grads.weight.flatten().tolist() == [1.0, 0.0, 2.0, 0.0]


def test_the_table_starts_standard_normal():
    torch.manual_seed(0)
    weight = fl.Embedding(500, 200).weight.double()
    assert abs(weight.mean().item()) < 4 / 100_000**0.5
    assert abs(weight.var().item() - 1) < 4 * (2 / 100_000) ** 0.5


def test_a_table_tied_to_an_output_layer_is_one_parameter_with_the_total_gradient():
    table = fl.Embedding(5, 3)
    model = fl.Chain(table, fl.at(fl.Dense(3, 5, bias=False), ".weight").set(table.weight))
    assert len(fl.trainables(model)) == 1

    words = torch.tensor([1, 4])
    weight = table.weight.clone().requires_grad_()
    (torch.nn.functional.embedding(words, weight) @ weight.T).square().sum().backward()
    grads = fl.gradient(lambda m: m(words).square().sum(), model)
    torch.testing.assert_close(grads.layers[0].weight, weight.grad)
    assert grads.layers[1].weight is None
