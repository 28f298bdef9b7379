"""The parity table: models of timm as trees."""

from __future__ import annotations

import pytest
import torchvision_here  # noqa: F401
from wrapped_models import TIMM
from wrapped_parity import Parity, Promises

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=TIMM)
def parity(request: pytest.FixtureRequest) -> Parity:
    pytest.importorskip("timm", reason="timm is not installed")
    return Parity(TIMM[request.param])


class TestTimm(Promises):
    pass
