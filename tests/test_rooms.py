"""The rooms of the library, such as `fl.losses`: what stands in them is what they offer."""

import pytest

import fluxlike as fl

ROOMS = (
    "callbacks", "data", "distributed", "init", "logs", "losses", "metrics", "models", "random", "schedules",
    "tree",
)  # fmt: skip


@pytest.mark.parametrize("name", ROOMS)
def test_what_a_room_completes_to_is_what_it_offers(name):
    room = getattr(fl, name)
    assert dir(room) == sorted(room.__all__)
    assert all(hasattr(room, known) for known in room.__all__)
