from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
        (torch.zeros(2), r"torch.float32; write x.long\(\)"),
        (torch.zeros(2, dtype=torch.bool), "torch.bool"),
        (torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
        (3, "int"),
        ([1, 2], r"list; write torch.tensor\(…\)"),
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


def bag_of(mode, rows):
    """A bag's vector in plain Python's order: of no rows zeros."""
    if not len(rows):
        return rows.new_zeros(rows.shape[1])
    return {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.max(0).values}[mode]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@given(st.data(), st.sampled_from(["sum", "mean", "max"]))
@settings(max_examples=50, deadline=None)
def test_bags_of_any_lengths_are_reduced_each_by_itself_eager_and_under_vmap(data, mode):
    bags = data.draw(st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4))
    layer = fl.f64(fl.EmbeddingBag(5, 2, mode=mode))
    indices = torch.tensor([i for bag in bags for i in bag], dtype=torch.long)
    starts = torch.tensor([sum(map(len, bags[:k])) for k in range(len(bags))])
    wanted = torch.stack([bag_of(mode, layer.weight[torch.tensor(bag, dtype=torch.long)]) for bag in bags])
    close(layer(indices, starts), wanted)
    close(fl.vmap(lambda m: m(indices, starts))(fl.stack([layer, layer])), torch.stack([wanted, wanted]))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)], ids=str)
def test_bags_of_one_length_are_the_rows_of_a_matrix(mode, shape):
    layer, indices = fl.f64(fl.EmbeddingBag(5, 2, mode=mode)), torch.randint(5, shape)
    wanted = [bag_of(mode, layer.weight[bag]) for bag in indices]
    close(layer(indices), torch.stack(wanted) if wanted else torch.zeros(0, 2, dtype=torch.float64))
    if shape[0]:
        close(fl.vmap(lambda bag: layer(bag.unsqueeze(0))[0])(indices), torch.stack(wanted))


def test_weights_multiply_the_vectors_of_a_sum_eager_and_under_vmap():
    layer = fl.f64(fl.EmbeddingBag(5, 2, mode="sum"))
    indices, weights = torch.tensor([3, 1, 3]), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    starts, w = torch.tensor([0, 2]), layer.weight
    wanted = torch.stack([w[3] - 2 * w[1], 0.5 * w[3]])
    close(layer(indices, starts, weights), wanted)
    close(fl.vmap(lambda c: layer(indices, starts, c))(weights.expand(2, 3)), wanted.expand(2, 2, 2))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_has_second_derivatives_by_a_gradient_in_a_gradient_and_by_hvp(mode):
    layer, indices = fl.f64(fl.EmbeddingBag(5, 2, mode=mode)), torch.tensor([[1, 4], [2, 2]])

    def looked_up(m):
        rows = m.weight[indices]
        return {"sum": rows.sum(1), "mean": rows.mean(1), "max": rows.amax(1)}[mode].pow(3).sum()

    def total(f, m):
        return fl.tree.norm(fl.gradient(f, m)) ** 2

    def own(m):
        return m(indices).pow(3).sum()

    close(
        fl.gradient(lambda m: total(own, m), layer).weight,
        fl.gradient(lambda m: total(looked_up, m), layer).weight,
    )
    v = fl.tree.scale(layer, 0.3)
    close(fl.hvp(own, layer, v=v).weight, fl.hvp(looked_up, layer, v=v).weight)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_indices_and_offsets_of_a_bag_may_be_of_different_widths(dtype):
    layer = fl.EmbeddingBag(5, 2)
    wanted = layer(torch.tensor([3, 1]), torch.tensor([0, 1]))
    assert torch.equal(layer(torch.tensor([3, 1], dtype=dtype), torch.tensor([0, 1])), wanted)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (([1],), TypeError, r"EmbeddingBag takes a tensor of integers, found list"),
        ((torch.ones(1, 2),), TypeError, r"EmbeddingBag takes a tensor of integers, found torch.float32"),
        ((torch.tensor([1]),), ValueError, r"found \(1,\) without offsets; write indices.unsqueeze\(0\)"),
        (
            (torch.tensor(1),),
            ValueError,
            r"shape \(N, L\), or \(L,\) with offsets, found \(\) without offsets$",
        ),
        ((torch.tensor([[1]]), torch.tensor([0])), ValueError, r"found \(1, 1\) with offsets$"),
        (
            (torch.tensor([1]), [0]),
            TypeError,
            r"EmbeddingBag's offsets takes a tensor of integers, found list",
        ),
        ((torch.tensor([[1, 5]]),), IndexError, r"EmbeddingBag has 5 vectors, found indices from 1 to 5"),
        ((torch.tensor([[-1, 2]]),), IndexError, r"EmbeddingBag has 5 vectors, found indices from -1 to 2"),
        (
            (torch.tensor([[1, 2]]), None, torch.ones(1, 2)),
            ValueError,
            r"per_sample_weights of the shape of the indices and mode='sum', found .* mode='mean'",
        ),
    ],
)
def test_what_is_no_bag_is_an_error_that_shows_it(arguments, kind, text):
    with pytest.raises(kind, match=text):
        fl.EmbeddingBag(5, 2)(*arguments)


@pytest.mark.parametrize(
    ("weights", "kind", "text"),
    [
        (
            [1.0, 2.0],
            TypeError,
            r"EmbeddingBag takes per_sample_weights as a tensor, found a list; write torch",
        ),
        (
            torch.tensor([[1, 2]]),
            ValueError,
            r"per_sample_weights of float32, as its vectors are, found int64;",
        ),
        (
            torch.ones(1, 2).double(),
            ValueError,
            r"found float64; write per_sample_weights.to\(torch.float32\)",
        ),
    ],
)
def test_weights_of_another_kind_are_told(weights, kind, text):
    with pytest.raises(kind, match=text):
        fl.EmbeddingBag(5, 2, mode="sum")(torch.tensor([[1, 2]]), None, weights)


def test_an_unknown_mode_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"mode='min': write one of sum, mean, max"):
        fl.EmbeddingBag(5, 2, mode="min")


BAD_OFFSETS = [[1, 2], [0, 4], [0, 2, 1], [0, -1, 2], [2, 0]]


def ways(layer, indices, starts):
    """One call of a bag by all the ways that there are: by torch's kernel, and written out."""
    return {
        "eager": lambda: layer(indices, starts),
        "vmap of indices": lambda: fl.vmap(lambda i: layer(i, starts))(indices[None])[0],
        "vmap of offsets": lambda: fl.vmap(lambda s: layer(indices, s), in_dims=-1)(starts[:, None])[0],
        "vmap of vmap": lambda: fl.vmap(fl.vmap(lambda s: layer(indices, s), in_dims=1))(
            starts[None, :, None]
        )[0, 0],
        "forward mode": lambda: fl.pushforward(lambda m: m(indices, starts), layer, v=layer)[0],
        "second derivative": lambda: fl.gradient(
            lambda m: fl.gradient(lambda m: m(indices, starts).sum(), m).weight.sum(), layer
        ),
    }


WAYS = list(ways(None, torch.zeros(1), torch.zeros(1, 1)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("offsets", BAD_OFFSETS, ids=str)
def test_offsets_that_cut_no_bags_are_an_error_in_every_way_of_calling(offsets, way):
    layer = fl.EmbeddingBag(5, 2, mode="sum")
    call = ways(layer, torch.tensor([1, 2, 3]), torch.tensor(offsets))[way]
    with pytest.raises(ValueError, match=r"offsets that begin with 0, never fall, and end at most at 3"):
        call()


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("offsets", [[0, 1], [0, 0, 3], [0]], ids=str)
def test_good_offsets_give_the_same_bags_in_every_way_of_calling(offsets, mode, way):
    layer = fl.f64(fl.EmbeddingBag(5, 2, mode=mode))
    indices, starts = torch.tensor([1, 2, 3]), torch.tensor(offsets)
    ends = [*offsets[1:], 3]
    wanted = [bag_of(mode, layer.weight[indices[a:b]]) for a, b in zip(offsets, ends, strict=True)]
    close(ways(layer, indices, starts)[way](), torch.stack(wanted))


def test_an_index_outside_the_table_is_explained_where_the_vectors_are_written_out():
    layer = fl.EmbeddingBag(5, 2)
    with pytest.raises(IndexError, match="EmbeddingBag has 5 vectors, found indices from 1 to 7"):
        fl.vmap(lambda m: m(torch.tensor([1, 7]), torch.tensor([0])))(fl.stack([layer, layer]))


def test_no_bags_at_all_are_none_in_every_way():
    layer, indices, starts = fl.EmbeddingBag(5, 2), torch.tensor([1, 2]), torch.zeros(0, dtype=torch.long)
    assert layer(indices, starts).shape == (0, 2)
    assert fl.vmap(lambda m: m(indices, starts))(fl.stack([layer, layer])).shape == (2, 0, 2)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_second_derivatives_of_ragged_bags_hold_each_vector_once(mode):
    layer = fl.f64(fl.EmbeddingBag(50, 4, mode=mode))
    indices, starts = torch.randint(50, (600,)), torch.arange(0, 600, 6)

    def penalty(m):
        return fl.tree.norm(fl.gradient(lambda m: m(indices, starts).pow(3).sum(), m)) ** 2

    biggest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            y = function(*args, **(kwargs or {}))
            biggest = max([biggest, *(t.numel() for t in fl.fleaves(y))])
            return y

    with Sizes():
        ragged = fl.gradient(penalty, layer)
    assert biggest <= 601 * 4

    def even(m):
        return fl.tree.norm(fl.gradient(lambda m: m(indices.reshape(100, 6)).pow(3).sum(), m)) ** 2

    torch.testing.assert_close(ragged.weight, fl.gradient(even, layer).weight, rtol=1e-9, atol=1e-9)


def test_an_index_outside_the_table_is_named_under_vmap_too():
    with pytest.raises(IndexError, match=r"Embedding has 3 vectors, found indices from 1 to 3"):
        fl.vmap(fl.Embedding(3, 2))(torch.tensor([[1, 3]]))
