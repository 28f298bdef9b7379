"""Names that users of torch type first: the error says what to write."""

import copy
import dataclasses
import pickle
import re
from types import ModuleType

import pytest
import torch

import fluxlike as fl
from fluxlike.advice import OF_CHAINS, OF_RULES, WORDS


@pytest.mark.parametrize(
    ("module", "name", "write"),
    [
        (fl, "Linear", r"write fl\.Dense\(in_features, out_features\)$"),
        (fl, "SGD", r"write fl\.Descent\(lr\)"),
        (fl.losses, "cross_entropy", r"module 'fluxlike\.losses' .*: write fl\.losses\.logitcrossentropy$"),
        (fl.schedules, "CosineAnnealingLR", r"fl\.schedules\.Cosine\(high, low, steps\)"),
        (fl, "adam", r"has no attribute 'adam'; did you mean 'Adam'\?$"),
        (fl, "nothing_like_it", r"^module 'fluxlike' has no attribute 'nothing_like_it'$"),
    ],
)
def test_a_name_that_is_not_there_says_what_to_write(module, name, write):
    assert not hasattr(module, name)
    with pytest.raises(AttributeError, match=write):
        getattr(module, name)


def test_every_name_of_ours_in_the_table_exists_and_no_name_of_torch_does():
    for text in (*WORDS.values(), *OF_CHAINS.values(), *OF_RULES.values()):
        for path in re.findall(r"\b(?:fl|fluxlike)\.(\w[\w.]*)", text):
            found = fl
            for name in path.split("."):
                found = getattr(found, name)
    rooms = (fl, fl.losses, fl.schedules)  # folders of the package are there once something in them was used
    taken = [(name, room) for name in WORDS for room in rooms if hasattr(room, name)]
    assert [name for name, room in taken if not isinstance(getattr(room, name), ModuleType)] == []


@pytest.mark.parametrize("name", OF_RULES)
def test_a_name_of_an_optimiser_of_torch_says_what_to_write(name):
    rule = fl.Adam()
    assert not hasattr(rule, name)
    assert name not in dir(rule)
    with pytest.raises(AttributeError, match=f"^Adam has no '{name}': "):
        getattr(rule, name)
    assert copy.deepcopy(rule) == pickle.loads(pickle.dumps(rule)) == rule


def test_a_rule_may_have_a_field_that_an_optimiser_of_torch_has_too():
    @dataclasses.dataclass(frozen=True)
    class Own(fl.Descent):
        step: float = 2.0
        state: int = dataclasses.field(default=0, kw_only=True)

    assert (Own().step, Own(step=3.0).step, Own().state) == (2.0, 3.0, 0)
    assert {"step", "state"} <= set(dir(Own()))
    assert "zero_grad" not in dir(Own())


def test_a_module_of_torch_keeps_attributes_of_its_own_whatever_their_names():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.step = torch.nn.Linear(2, 1)
            self.grad = 3

        dtype = property(lambda self: self.step.weight.dtype)

        def append(self, x):
            return [x]

        def forward(self, x):
            return self.step(x)

    model = fl.Chain(fl.from_torch(Net()))[0]
    assert isinstance(model.step, fl.TorchModule)
    assert (model.grad, model.dtype, model.append(1)) == (3, torch.float32, [1])


@pytest.mark.parametrize(
    ("loss", "target", "write"),
    [
        (fl.losses.crossentropy, torch.tensor([0, 1]), "logitcrossentropy"),
        (fl.losses.binarycrossentropy, torch.ones(2, 2), "logitbinarycrossentropy"),
        (fl.losses.focal, torch.tensor([0, 1]), r"torch\.softmax\(logits, 1\)"),
        (fl.losses.binary_focal, torch.ones(2, 2), r"torch\.sigmoid\(logits\)"),
        (fl.losses.kldivergence, torch.full((2, 2), 0.5), r"torch\.softmax\(logits, 1\), or log_probs\.exp"),
    ],
)
def test_a_loss_of_probabilities_refuses_scores_also_inside_a_gradient(loss, target, write):
    scores = torch.tensor([[-2.1, 0.0], [3.4, 1.0]])
    with pytest.raises(
        ValueError, match=rf"takes probabilities, found values from -2\.1 to 3\.4: write {write}"
    ):
        fl.gradient(lambda s: loss(s, target), scores)
    assert loss(torch.softmax(scores, 1), target).isfinite()
