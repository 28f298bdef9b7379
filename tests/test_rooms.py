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


@pytest.mark.parametrize(
    ("name", "asked", "write"),
    [
        ("callbacks", "EarlyStoping", "did you mean 'EarlyStopping'"),
        ("models", "ResNett", "did you mean 'ResNet'"),
        ("init", "xavier_uniform", "write fl.init.glorot_uniform"),
        ("random", "randn", "write fl.random.normal"),
        ("distributed", "DDP", "write fl.to_device"),
    ],
)
def test_a_name_that_a_room_does_not_have_is_answered_by_what_to_write(name, asked, write):
    with pytest.raises(AttributeError, match=write):
        getattr(getattr(fl, name), asked)
