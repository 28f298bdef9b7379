"""What is kept is what the rule says: the best, and the newest."""

import math
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxlike.learning.checkpoints.store import Store

SCORES = st.none() | st.sampled_from([math.nan, -math.inf, math.inf, -0.0, 0.0, 1.0, 2.0, 3.0])
RUNS = st.lists(st.tuples(st.integers(1, 5), SCORES), min_size=1, max_size=8)


def wanted(saved, keep, by, mode):
    """The rule over all that was ever saved, by pairs: one is kept where fewer than `keep` beat it."""

    def beats(a, b):
        (step, score), (other, than) = a, b
        known = by is not None and score is not None and not math.isnan(score)
        known_than = by is not None and than is not None and not math.isnan(than)
        if known != known_than:
            return known
        if not known:
            return step > other
        if score == than:
            return step < other
        return score < than if mode == "min" else score > than

    newest = saved[-1]
    return [a[0] for a in saved if a is newest or sum(beats(b, a) for b in saved) < keep]


@given(RUNS, st.integers(1, 4), st.sampled_from([None, "loss"]), st.sampled_from(["min", "max"]))
@settings(deadline=None, max_examples=60)
def test_the_best_and_the_newest_of_all_that_were_saved_are_kept(run, keep, by, mode):
    with tempfile.TemporaryDirectory() as folder, Store(folder, keep, by=by, mode=mode) as store:
        saved, step = [], 0
        for more, score in run:
            step += more
            saved.append((step, score))
            store.save(step, {"w": torch.tensor(step)}, None, None if score is None else {"loss": score})
            # What was removed was beaten by so many that it never comes back, so the whole past decides.
            assert [entry.step for entry in store.list()] == wanted(saved, keep, by, mode)
        assert store.newest().step == step
        numbers = [(s, x) for s, x in saved if x is not None and not math.isnan(x)]
        if numbers:
            best = (min if mode == "min" else max)(x for _, x in numbers)
            if by is not None:
                assert store.best("loss").step == next(s for s, x in numbers if x == best)
        elif by:
            with pytest.raises(ValueError, match="has a number as 'loss'"):
                store.best("loss")


def test_none_keeps_all(tmp_path):
    with Store(tmp_path, keep=None) as store:
        for step in range(7):
            store.save(step, {})
    assert [entry.step for entry in store.list()] == [*range(7)]


@pytest.mark.parametrize("given", [{"keep": 0}, {"keep": True}, {"keep": "3"}, {"mode": "least"}], ids=str)
def test_another_rule_is_an_error(tmp_path, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Store(tmp_path, **given)
