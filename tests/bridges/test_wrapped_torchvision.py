"""The parity table: every family of torchvision's classifiers as trees."""

from __future__ import annotations

import pytest
from torchvision_here import torchvision
from wrapped_parity import Parity, Promises
from wrapped_torchvision_models import QUICK, TORCHVISION

NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TORCHVISION]


@pytest.fixture(scope="module", params=NAMES)
def parity(request: pytest.FixtureRequest) -> Parity:
    torchvision()
    return Parity(TORCHVISION[request.param])


class TestTorchvision(Promises):
    pass


def test_every_family_of_classifiers_is_in_the_table() -> None:
    models = torchvision().models
    files = {models.get_model_builder(name).__module__ for name in models.list_models()}
    families = {file.removeprefix("torchvision.models.") for file in files}
    of_other_tasks = ("detection.", "segmentation.", "optical_flow.", "quantization.")
    classifiers = {family for family in families if not family.startswith(of_other_tasks)}
    assert {name.partition(",")[0] for name in TORCHVISION} >= classifiers
