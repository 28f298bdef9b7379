"""A function among steps that uses layers which are in no tree because of it."""

import re
import warnings

import pytest
import torch

import fluxlike as fl

outside = fl.Dense(3, 4)
mask = torch.ones(3)


@pytest.mark.parametrize("kind", [fl.Chain, lambda *steps: fl.Parallel(torch.add, *steps)])
def test_a_layer_that_a_step_finds_among_globals_is_warned_of(kind):
    told = re.escape("uses outside, a Dense with 16 parameters that is in no tree")
    with pytest.warns(UserWarning, match=told):
        kind(fl.Dense(3, 4), lambda x: outside(x))


@pytest.mark.parametrize(("layer", "kind"), [(fl.Dense(3, 4), "Dense"), (torch.nn.Linear(3, 4), "Linear")])
def test_a_layer_that_a_step_closes_over_is_warned_of_where_the_chain_is_made(layer, kind):
    with pytest.warns(
        UserWarning, match=f"step 0 of Chain, the function <lambda>, uses layer, a {kind}"
    ) as told:
        fl.Chain(lambda x: [layer(row) for row in x])
    assert told[0].filename == __file__


def test_constants_functions_attributes_of_the_same_name_and_layers_without_parameters_are_not():
    pool, later = fl.GlobalMeanPool(), lambda x: x * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fl.Chain(lambda x: x * mask, lambda x: x.outside)
        fl.Chain(lambda x: pool(x), lambda x: later(x), lambda x: unknown(x))
    unknown = fl.Dense(3, 4)
