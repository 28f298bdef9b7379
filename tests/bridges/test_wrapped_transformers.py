"""The parity table: models of transformers, of every kind, as trees."""

from __future__ import annotations

import pytest
import torchvision_here  # noqa: F401
from wrapped_models import TRANSFORMERS
from wrapped_parity import Parity, Promises


@pytest.fixture(scope="module", params=TRANSFORMERS)
def parity(request: pytest.FixtureRequest) -> Parity:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return Parity(TRANSFORMERS[request.param])


class TestTransformers(Promises):
    pass
