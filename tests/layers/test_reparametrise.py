"""WeightNorm and SpectralNorm: around which layers, what is trained, what is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fluxlike as fl


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@fl.functor
class Cell:
    """Two weights, as a recurrent cell has."""

    def __init__(self):
        self.weight_ih, self.weight_hh = torch.randn(4, 3), torch.randn(4, 4)

    def __call__(self, x, h):
        return torch.tanh(x @ self.weight_ih.T + h @ self.weight_hh.T)


@fl.functor
class Outer:
    def __init__(self):
        self.cell = Cell()

    def __call__(self, x, h):
        return self.cell(x, h)


both = pytest.mark.parametrize("make", [fl.WeightNorm, fl.SpectralNorm])


@both
def test_the_layers_weight_is_there_once_and_the_layer_is_not_changed(make):
    dense = fl.Dense(3, 2)
    weight, before = dense.weight, dense.weight.clone()
    norm = make(dense)
    assert norm.layer is dense
    assert norm.layer.weight is weight
    assert sum(t.shape == (2, 3) for t in fl.fleaves(norm)) == 1
    norm(torch.ones(1, 3))
    assert dense.weight is weight
    assert torch.equal(weight, before)


@both
def test_a_tie_of_the_weight_survives_an_update(make):
    embedding, dense = fl.Embedding(5, 3), fl.Dense(3, 5, bias=False)
    tied = fl.at(dense, ".weight").set(embedding.weight)
    model = fl.Chain(embedding, make(tied))
    x = torch.tensor([0, 3])
    grads = fl.gradient(lambda m: m(x).square().sum(), model)
    assert grads.layers[1].layer.weight is None
    new, _ = fl.update(fl.setup(fl.Descent(0.1), model), model, grads)
    assert new.layers[0].weight is new.layers[1].layer.weight
    assert not torch.equal(new.layers[0].weight, embedding.weight)


@both
def test_the_folded_layer_computes_the_same(make):
    norm, x = make(fl.Dense(3, 2, fl.tanh)), torch.randn(4, 3)
    folded = norm.folded()
    assert type(folded) is fl.Dense
    assert folded.bias is norm.layer.bias
    assert torch.equal(folded(x), norm(x))


@both
def test_inside_a_chain_a_path_names_the_weight_at_any_depth(make):
    chain = fl.Chain(fl.Dense(3, 3), fl.Chain(fl.Dense(3, 2)))
    norm = make(chain, "layers[1].layers[0].weight")
    x = torch.randn(4, 3)
    inner = make(chain.layers[1].layers[0])
    if make is fl.SpectralNorm:
        inner = fl.at(inner, (".u", ".v")).set((norm.u, norm.v))
    exact(norm(x), inner(chain.layers[0](x)))
    grads = fl.gradient(lambda m: m(x).square().sum(), norm)
    assert all(g is not None for g in fl.fleaves(grads.layer))


@both
def test_two_weights_of_a_cell_are_normalised_by_two_wrappers(make):
    norm = make(make(Outer(), "cell.weight_ih"), "layer.cell.weight_hh")
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    folded = norm.folded().folded()
    assert type(folded) is Outer
    assert torch.equal(norm(x, h), folded(x, h))
    cell = norm.layer.layer.cell
    if make is fl.SpectralNorm:
        assert not torch.allclose(folded.cell.weight_ih, cell.weight_ih)
        assert not torch.allclose(folded.cell.weight_hh, cell.weight_hh)
    else:
        torch.testing.assert_close(folded.cell.weight_ih, cell.weight_ih)
    assert "name='layer.cell.weight_hh'" in repr(norm)


@both
def test_named_inputs_reach_the_layer(make):
    norm = make(Cell(), "weight_ih")
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    assert torch.equal(norm(x, h=h), norm(x, h))


@both
@pytest.mark.parametrize(
    ("layer", "name", "error", "text"),
    [
        (torch.tanh, "weight", TypeError, "takes a layer, an object of a class under fluxlike.functor"),
        (fl.Dense, "weight", TypeError, "found Dense"),
        (nn.Linear(2, 2), "weight", TypeError, "found Linear"),
        (fl.Dense(2, 2), "wieght", KeyError, r"no place 'wieght': the root is a Dense holding \.weight"),
        (fl.Dense(2, 2, bias=False), "bias", TypeError, "a tensor of floats, found None there; of Dense"),
        (fl.BatchNorm(2, momentum=None), "num_batches_tracked", TypeError, "found a tensor of torch.int64"),
    ],
    ids=["function", "class", "module", "no such name", "None", "integers"],
)
def test_what_has_no_such_weight_is_an_error(make, layer, name, error, text):
    with pytest.raises(error, match=text):
        make(layer, name)


@both
@pytest.mark.parametrize("dim", [2, -3])
def test_an_axis_that_is_not_there_is_an_error(make, dim):
    with pytest.raises(ValueError, match=rf"{make.__name__}\(dim={dim}\): the weight of shape \(2, 3\)"):
        make(fl.Dense(3, 2), dim=dim)


def test_no_iteration_is_an_error():
    with pytest.raises(ValueError, match=r"SpectralNorm\(n_power_iterations=0\): write 1 or more"):
        fl.SpectralNorm(fl.Dense(3, 2), n_power_iterations=0)


@both
def test_an_error_of_the_layer_has_its_path_and_all_shapes(make):
    model = fl.Chain(make(Cell(), "weight_ih"))
    with pytest.raises(
        fl.LayerError, match=r"^\.layers\[0\]\.layer: .*Cell.* got a tensor of shape \(2, 3\)"
    ):
        model(torch.ones(2, 3))
    shapes = r"\(a tensor of shape \(2, 3\) .*, a tensor of shape \(2, 5\) and torch.float32\)"
    with pytest.raises(fl.LayerError, match=rf"^\.layer: .*Cell.* got {shapes}"):
        model.layers[0](torch.ones(2, 3), torch.ones(2, 5))


@both
def test_every_transform_goes_through_a_normalised_layer(make):
    norm, x = fl.f64(make(fl.Dense(3, 2, fl.tanh))), torch.randn(4, 3, dtype=torch.float64)

    def loss(m, x):
        return m(x).square().sum()

    each = fl.per_example_gradient(loss, norm, x)
    for i in range(4):
        exact(each.layer.weight[i], fl.gradient(loss, norm, x[i : i + 1]).layer.weight)
    step = fl.tree.scale(norm, 0.1)
    with fl.mode("test"):
        _, slope = fl.pushforward(lambda m: loss(m, x), norm, v=step)
        exact(slope, fl.tree.dot(fl.gradient(loss, norm, x), step))
        curved = fl.hvp(lambda m: loss(m, x), norm, v=step)
        slopes = fl.gradient(lambda m: fl.tree.dot(fl.gradient(loss, m, x), step), norm)
    assert fl.tree.allclose(curved, slopes, rtol=1e-12, atol=1e-12)


@both
def test_a_16_bit_model_stays_16_bit(make):
    norm = fl.bf16(make(fl.Dense(3, 2)))
    assert all(t.dtype == torch.bfloat16 for t in fl.fleaves(norm))
    assert norm(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_weightnorm_computes_at_first_what_the_layer_did():
    for layer, x in (
        (fl.Dense(3, 2), torch.randn(4, 3)),
        (fl.Conv((3, 3), 2, 4), torch.randn(1, 2, 5, 5)),
        (fl.Embedding(5, 3), torch.tensor([0, 4])),
    ):
        for dim in (0, 1, -1, None):
            torch.testing.assert_close(fl.WeightNorm(layer, dim=dim)(x), layer(x))


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -4, None])
def test_weightnorm_keeps_a_magnitude_for_each_place_of_an_axis(dim):
    layer = fl.f64(fl.Conv((5, 6), 3, 4))
    g = fl.WeightNorm(layer, dim=dim).g
    if dim is None:
        exact(g, layer.weight.norm())
    else:
        exact(g, torch.norm_except_dim(layer.weight, 2, dim % 4))
        assert g.numel() == layer.weight.shape[dim]


def test_weightnorm_with_one_magnitude_equals_torchs():
    norm = fl.WeightNorm(fl.f64(fl.Dense(3, 2)), dim=None)
    twin = parametrizations.weight_norm(nn.Linear(3, 2).double(), dim=None)
    for mine, other in zip((norm.layer.bias, norm.g, norm.layer.weight), twin.parameters(), strict=True):
        other.data.copy_(mine * 2)
    x = torch.randn(4, 3, dtype=torch.float64)
    exact(fl.tree.scale(norm, 2.0)(x), twin(x).detach())


def test_the_scale_of_the_direction_does_not_matter():
    norm, x = fl.f64(fl.WeightNorm(fl.Dense(3, 2))), torch.randn(4, 3, dtype=torch.float64)
    longer = fl.at(norm, ".layer.weight").apply(lambda v: 7 * v)
    exact(longer(x), norm(x))
    direction = fl.gradient(lambda m: m(x).square().sum(), norm).layer.weight
    exact((direction * norm.layer.weight).sum(1), torch.zeros(2, dtype=torch.float64))


@both
def test_a_weight_of_one_axis_is_normalised_by_its_length_or_entries(make):
    norm = make(fl.f64(fl.LayerNorm(3)))
    weight = norm.folded().weight
    expected = torch.ones(3, dtype=torch.float64)
    exact(weight, expected if make is fl.WeightNorm else expected / 3**0.5)
    assert make is fl.WeightNorm or norm.u is norm.v is None


def torchs(layer, n=1):
    """torch's spectral norm of a Linear with the same weight, as torch starts it."""
    twin = nn.Linear(3, 4)
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        twin.bias.copy_(layer.bias)
    torch.manual_seed(5)
    return parametrizations.spectral_norm(twin, n_power_iterations=n)


@pytest.mark.parametrize("n", [1, 3])
def test_spectralnorm_starts_and_trains_as_torchs_after_manual_seed(n):
    dense = fl.Dense(3, 4)
    twin = torchs(dense, n)
    torch.manual_seed(5)
    model = fl.SpectralNorm(dense, n_power_iterations=n)
    inner = twin.parametrizations.weight[0]
    torch.testing.assert_close(model.u, inner._u)
    torch.testing.assert_close(model.v, inner._v)
    state, optimiser = fl.setup(fl.Descent(0.1), model), torch.optim.SGD(twin.parameters(), 0.1)
    for _ in range(4):
        x = torch.randn(5, 3)
        grads = fl.gradient(lambda m, x: m(x).square().sum(), model, x)
        model, state = fl.update(state, model, grads)
        optimiser.zero_grad()
        twin(x).square().sum().backward()
        optimiser.step()
        torch.testing.assert_close(model.u, inner._u)
        torch.testing.assert_close(model.layer.weight, twin.parametrizations.weight.original.detach())


def test_a_spectralnorm_called_twice_iterates_twice():
    model, x = fl.SpectralNorm(fl.Dense(3, 4)), torch.ones(1, 3)
    model = fl.at(model, ".u").set(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    model = fl.at(model, ".v").set(torch.tensor([1.0, 0.0, 0.0]))
    _, once = fl.withupdates(lambda m: m(x), model)
    _, twice = fl.withupdates(lambda m: m(x) + m(x), model)
    again = fl.withupdates(lambda m: m(x), fl.apply_updates(model, once))[1]
    torch.testing.assert_close(twice.u.value, again.u.value)
    assert not torch.allclose(once.u.value, twice.u.value)


def test_in_test_mode_or_pinned_a_spectralnorm_keeps_its_vectors():
    model, x = fl.SpectralNorm(fl.Dense(3, 4)), torch.ones(1, 3)
    grads = fl.gradient(lambda m: m(x).sum(), fl.testmode(model))
    assert grads.u is grads.v is None
    assert torch.equal(model(x), model(x))


def test_the_vectors_are_buffers_and_the_weight_is_trained():
    paths = [path for path, _ in fl.trainables(fl.SpectralNorm(fl.Dense(3, 4)), paths=True)]
    assert paths == [".layer.weight", ".layer.bias"]


def test_a_spectral_norm_is_one():
    for layer, dim in ((fl.Dense(6, 4), 0), (fl.Conv((3, 3), 2, 4), 0), (fl.ConvTranspose((3, 3), 2, 4), 1)):
        norm = fl.SpectralNorm(layer, n_power_iterations=200)
        assert norm.dim == dim
        with fl.mode("train"):
            weight = norm.folded().weight
        matrix = weight.movedim(dim, 0).flatten(1)
        torch.testing.assert_close(torch.linalg.matrix_norm(matrix, 2), torch.tensor(1.0))


def test_a_spectralnorm_made_under_a_key_is_a_function_of_it():
    def make():
        with fl.seeded(fl.Key(3)):
            return fl.SpectralNorm(fl.Dense(3, 4))

    assert fl.tree.allclose(make(), make())


@pytest.mark.parametrize("norm", [fl.WeightNorm, fl.SpectralNorm])
def test_a_weight_of_zeros_has_no_direction_and_gives_nan(norm):
    assert norm(fl.Dense(3, 2, init=torch.zeros)).folded().weight.isnan().all()
