"""A checkpoint comes back to the bit and to its order in memory; a damaged one says what to do."""

import os
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.checkpoints import store as store_module
from fluxlike.learning.checkpoints.entry import read_entry
from fluxlike.learning.checkpoints.memory_order import in_order, order_of
from fluxlike.learning.checkpoints.store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "run") as opened:
        yield opened


def learner():
    model = fl.channels_last(
        fl.Chain(fl.Conv((3, 3), 3, 8, fl.relu), fl.Conv((3, 3), 8, 1), fl.BatchNorm(1), fl.flatten)
    )
    return {"model": model, "state": fl.setup(fl.Adam(), model), "key": fl.Key(3), "step": 0}


def filled(folder, steps=(1, 2, 3)):
    with Store(folder, keep=None) as store:
        for step in steps:
            store.save(step, {"w": torch.full((100,), float(step))}, {"at": step}, {"loss": 1 / step})
    return store


class TestRoundTrip:
    def test_a_run_comes_back_with_its_bits_strides_and_ties(self, store):
        tree = learner()
        x = torch.randn(4, 3, 8, 8)
        grads = fl.gradient(lambda m: m(x).square().sum(), tree["model"])
        tree["model"], tree["state"] = fl.update(tree["state"], tree["model"], grads)
        tree["step"] = 1
        store.save(1, tree, {"losses": [0.5]}, {"loss": 0.5})
        loaded, plain = store.load(store.newest(), like=learner())
        assert plain == {"losses": [0.5]}
        assert loaded["step"] == 1
        for a, b in zip(fl.fleaves(loaded), fl.fleaves(tree), strict=True):
            assert (a.dtype, a.stride(), a.device) == (b.dtype, b.stride(), b.device)
            assert torch.equal(a, b)
        assert loaded["model"].layers[0].weight.is_contiguous(memory_format=torch.channels_last)

    def test_the_order_in_memory_is_the_saved_one_whatever_like_has(self, store):
        last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        tree = {"last": last, "first": torch.randn(2, 3, 4, 5), "t": torch.randn(3, 2).t(), "thin": thin()}
        store.save(1, tree)
        like = {
            "last": torch.empty(2, 3, 4, 5),
            "first": torch.empty_like(last),
            "t": torch.empty(2, 3),
            "thin": torch.empty(8, 1, 3, 3),
        }
        loaded, _ = store.load(store.newest(), like=like)
        assert {name: x.stride() for name, x in loaded.items()} == {
            name: x.stride() for name, x in tree.items()
        }
        assert all(torch.equal(loaded[name], tree[name]) for name in tree)

    def test_memory_is_fresh_aligned_and_dense(self, store):
        tree = {"a": torch.randn(1001)[1:], "b": torch.randn(7)}
        store.save(1, tree)
        loaded, _ = store.load(store.newest(), like=tree)
        for name, x in loaded.items():
            assert x.data_ptr() % 64 == 0
            assert x.untyped_storage().resizable()
            assert x.untyped_storage().nbytes() == 4 * x.numel()
            assert torch.equal(x, tree[name])

    def test_ties_stay(self, store):
        w = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        store.save(1, {"a": w, "b": [w]})
        like = torch.empty(2, 3, 4, 5)
        loaded, _ = store.load(store.newest(), like={"a": like, "b": [like]})
        assert loaded["a"] is loaded["b"][0]
        assert loaded["a"].stride() == w.stride()

    def test_like_may_be_on_the_meta_device(self, store):
        store.save(1, {"w": torch.ones(2)})
        loaded, _ = store.load(store.newest(), like={"w": torch.empty(2, device="meta")})
        assert loaded["w"].tolist() == [1, 1]

    def test_what_tree_and_plain_share_is_apart_again(self, store):
        w = torch.ones(2)
        store.save(1, {"w": w}, {"best": w, "n": np.float32(2)})
        loaded, plain = store.load(store.newest(), like={"w": w})
        plain["best"].zero_()
        assert loaded["w"].tolist() == [1, 1]
        assert type(plain["n"]) is np.float32

    def test_a_model_alone_is_read_by_load_checkpoint(self, store):
        model = fl.Dense(2, 3)
        store.save(1, {"model": model, "state": fl.setup(fl.Adam(), model)}, {"h": [1.0]})
        rules = {"tree.model": "", "tree": None, "plain": None}
        loaded = fl.load_checkpoint(store.newest().path, fl.Dense(2, 3), rename=rules)
        assert fl.tree.allclose(loaded, model, rtol=0, atol=0)

    def test_nothing_is_changed(self, store):
        tree, plain, scores = {"w": torch.ones(2)}, {"h": [1.0]}, {"loss": torch.tensor(2.0)}
        store.save(1, tree, plain, scores)
        assert (plain, scores) == ({"h": [1.0]}, {"loss": torch.tensor(2.0)})
        assert store.newest().scores == {"loss": 2.0}


def thin():
    return torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last)


@given(
    st.lists(st.integers(0, 3), max_size=5).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))
    )
)
@settings(deadline=None)
def test_any_order_of_axes_comes_back(case):
    shape, order = case
    x = torch.randn(shape).permute(order)
    dense = x.clone()
    back = in_order(x.contiguous(), order_of(x))
    assert torch.equal(back, x)
    assert back.stride() == dense.stride()


class TestFolder:
    def test_an_empty_or_missing_folder_has_no_checkpoints(self, tmp_path):
        store = Store(tmp_path / "none")
        assert (store.list(), store.newest(), store.best("loss")) == ([], None, None)
        assert not store.folder.exists()

    def test_the_folder_is_made_with_those_above(self, tmp_path):
        with Store(tmp_path / "a" / "b") as store:
            store.save(1, {})
        assert store.newest().step == 1

    def test_a_file_as_the_folder_is_an_error(self, tmp_path):
        (tmp_path / "file").touch()
        for use in (Store.open, Store.list):
            with pytest.raises(NotADirectoryError, match="checkpoints need a folder"):
                use(Store(tmp_path / "file"))

    def test_other_files_are_left_alone(self, store):
        store.open()
        for name in ("notes.txt", ".notes.0123456789abcdef.tmp", "step-1.safetensors", "step-000000001.pt"):
            (store.folder / name).touch()
        before = set(os.listdir(store.folder))
        for step in range(1, 7):
            store.save(step, {})
        store.close()
        store.open()
        assert before <= set(os.listdir(store.folder))

    def test_leftovers_of_a_killed_run_are_removed_at_the_next_opening(self, tmp_path):
        left = tmp_path / ".step-000000005.safetensors.0123456789abcdef.tmp"
        left.touch()
        store = Store(tmp_path)
        assert store.list() == []
        assert left.exists()
        with store:
            assert not left.exists()

    def test_the_same_step_is_replaced(self, store):
        for loss in (2.0, 1.0):
            store.save(1, {"w": torch.tensor(loss)}, None, {"loss": loss})
        assert [entry.scores for entry in store.list()] == [{"loss": 1.0}]

    def test_an_earlier_step_is_of_another_run(self, tmp_path):
        filled(tmp_path)
        with Store(tmp_path) as store:
            with pytest.raises(
                ValueError, match=r"has a checkpoint of step 3, this one is of step 2: .*rewind"
            ):
                store.save(2, {})
            store.rewind(store.list()[0])
            store.save(2, {})
            assert [entry.step for entry in store.list()] == [1, 2]

    def test_steps_are_ordered_as_numbers(self, tmp_path):
        steps = (5, 999_999_999, 1_000_000_000, 10**17)
        assert [entry.step for entry in filled(tmp_path, steps).list()] == [*steps]


class TestScores:
    def test_a_score_that_the_store_keeps_by_must_be_there(self, tmp_path):
        with Store(tmp_path, by="los", mode="min") as store:
            with pytest.raises(
                ValueError, match=r"keeps the best by 'los', .* scores \['accuracy', 'loss'\]"
            ):
                store.save(1, {}, None, {"loss": 1, "accuracy": 2})
            store.save(1, {}, None, {})
        assert store.newest().step == 1

    @pytest.mark.parametrize(
        "score", ["1.0x", None, torch.ones(2), [1]], ids=["text", "none", "vector", "list"]
    )
    def test_what_is_no_number_is_named(self, store, score):
        with pytest.raises(TypeError, match=r"the score 'loss' is .* not a number"):
            store.save(1, {}, None, {"loss": score})

    def test_best_needs_a_score_that_is_there(self, tmp_path):
        store = filled(tmp_path)
        assert store.best("loss").step == 3
        assert store.best("loss", "max").step == 1
        with pytest.raises(ValueError, match="say by which score"):
            store.best()
        with pytest.raises(ValueError, match=r"no checkpoint .* 'accuracy'; their scores: \['loss'\]"):
            store.best("accuracy")

    @pytest.mark.parametrize("step", [-1, 1.0, True, "1", None])
    def test_a_step_is_a_whole_number(self, store, step):
        with pytest.raises(ValueError, match="step is how many steps were made"):
            store.save(step, {})


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-10]),
    "emptied": lambda p: p.write_bytes(b""),
    "a bit of a tensor": lambda p: flipped(p, -1),
    "a bit of the header": lambda p: flipped(p, 40),
    "zeros": lambda p: p.write_bytes(b"\0" * p.stat().st_size),
    "a checkpoint of another step": lambda p: p.write_bytes(
        (p.parent / "step-000000001.safetensors").read_bytes()
    ),
    "a file of fl.save": lambda p: fl.save(p, {"w": torch.ones(2)}),
    "a file of torch.save": lambda p: torch.save({"w": torch.ones(2)}, p),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_a_damaged_newest_names_itself_the_fault_and_the_way_on(self, tmp_path, damage):
        store = filled(tmp_path)
        newest = store.newest()
        damage(newest.path)
        assert store.newest().step == 3
        assert [entry.step for entry in store.list()] == [1, 2, 3]
        message = (
            r"the checkpoint of step 3 can't be read: .*step-000000003.* Those of steps \[1, 2\] are whole, "
            r"but none is taken by itself: to go on from step 2, move "
            rf"{re.escape(str(newest.path))} elsewhere"
        )
        with pytest.raises(ValueError, match=message):
            store.load(store.newest(), like={"w": torch.empty(100)})
        newest.path.rename(tmp_path / "elsewhere")
        tree, plain = store.load(store.newest(), like={"w": torch.empty(100)})
        assert (tree["w"][0].item(), plain) == (2.0, {"at": 2})

    @pytest.mark.parametrize("at", range(8, 4000, 131))
    def test_a_flipped_bit_anywhere_is_found(self, tmp_path, at):
        store = filled(tmp_path)
        flipped(store.newest().path, at % store.newest().path.stat().st_size)
        with pytest.raises(ValueError, match="the checkpoint of step 3 can't be read"):
            store.load(store.newest(), like={"w": torch.empty(100)})

    def test_only_whole_ones_are_offered(self, tmp_path):
        store = filled(tmp_path)
        for entry in store.list():
            flipped(entry.path, -1)
        with pytest.raises(
            ValueError, match=r"No other checkpoint in .* is whole: begin anew in another folder"
        ):
            store.load(store.newest(), like={"w": torch.empty(100)})

    def test_the_best_is_not_known_beside_a_damaged_one(self, tmp_path):
        store = filled(tmp_path)
        DAMAGE["truncated"](store.list()[0].path)
        with pytest.raises(
            ValueError, match=r"score of the checkpoint of step 1 is not known: .* is damaged"
        ):
            store.best("loss")

    def test_a_damaged_one_is_not_removed_and_takes_no_place(self, tmp_path):
        filled(tmp_path)
        with Store(tmp_path, keep=2) as store:
            DAMAGE["truncated"](store.list()[0].path)
            store.save(4, {"w": torch.ones(100)}, None, {"loss": 0.0})
            assert [(e.step, e.fault is None) for e in store.list()] == [(1, False), (3, True), (4, True)]

    def test_another_structure_is_no_damage(self, tmp_path):
        store = filled(tmp_path)
        with pytest.raises(ValueError, match=r"'w'\] .*\(100,\).*\(50,\)") as info:
            store.load(store.newest(), like={"w": torch.empty(50)})
        assert "can't be read" not in str(info.value)

    def test_one_that_was_removed_meanwhile(self, tmp_path):
        store = filled(tmp_path)
        entry = store.newest()
        entry.path.unlink()
        with pytest.raises(FileNotFoundError, match="step-000000003"):
            store.load(entry, like={"w": torch.empty(100)})

    @pytest.mark.parametrize("read", ["newest", "list", "best"])
    def test_one_that_a_run_replaces_while_it_is_read_gives_way_to_the_later_one(
        self, tmp_path, monkeypatch, read
    ):
        with Store(tmp_path, keep=1, by="loss") as writing:
            writing.save(1, {}, None, {"loss": 0.5})

            def after_another_save(path):
                monkeypatch.setattr(store_module, "read_entry", read_entry)
                writing.save(2, {}, None, {"loss": 0.25})
                return read_entry(path)

            monkeypatch.setattr(store_module, "read_entry", after_another_save)
            found = getattr(Store(tmp_path, by="loss"), read)()
        entry = found[0] if read == "list" else found
        assert (entry.step, entry.scores) == (2, {"loss": 0.25})

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_a_link_to_nowhere_is_no_checkpoint_and_hides_none(self, tmp_path):
        store = filled(tmp_path)
        (tmp_path / "step-000000009.safetensors").symlink_to(tmp_path / "nowhere")
        assert [entry.step for entry in store.list()] == [1, 2, 3]
        with pytest.raises(FileNotFoundError, match="step-000000009"):
            store.newest()

    def test_what_is_no_entry_is_an_error(self, store):
        with pytest.raises(TypeError, match=r"write store.load\(store.newest\(\), like=tree\)"):
            store.load(None, like={})

    def test_forged_strides_are_an_error(self, tmp_path, monkeypatch):
        from fluxlike.learning.checkpoints import content

        monkeypatch.setattr(content, "order_of", lambda x: [0])
        store = filled(tmp_path, [1])
        with pytest.raises(ValueError, match="not those of a dense tensor"):
            store.load(store.newest(), like={"w": torch.empty(100)})
