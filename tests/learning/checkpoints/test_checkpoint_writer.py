"""Written in the background: what was there when it was saved, one at a time, and no error is lost."""

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch

import fluxlike as fl
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.checkpoints.writer import AsyncWriter, snapshot


class Slow(Store):
    """A store whose writes wait for a sign, and say how many are under way."""

    def __init__(self, folder, **options):
        super().__init__(folder, **options)
        self.go, self.at_once, self.most = threading.Event(), 0, 0

    def write(self, prepared):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            assert self.go.wait(300)
            super().write(prepared)
        finally:
            self.at_once -= 1


class TestSnapshot:
    def test_donated_and_changed_tensors_do_not_reach_it(self, tmp_path):
        model = fl.Dense(3, 2)
        state = fl.setup(fl.Adam(), model)
        wanted = fl.tree.clone(model)
        array, history = np.ones(3), [1.0] * 20
        store = Slow(tmp_path)
        with AsyncWriter(store) as writer:
            writer.save(
                1, {"model": model, "state": state, "array": array}, {"history": history, "array": array}
            )
            grads = fl.gradient(lambda m: m(torch.ones(1, 3)).sum(), model)
            model, state = fl.update(state, model, grads, donate=True)
            array += 1
            history.clear()
            store.go.set()
        like = {"model": model, "state": state, "array": array}
        tree, plain = store.load(store.newest(), like=like)
        assert fl.tree.allclose(tree["model"], wanted, rtol=0, atol=0)
        assert not fl.tree.allclose(model, wanted, rtol=0, atol=0)
        assert tree["array"].tolist() == plain["array"].tolist() == [1, 1, 1]
        assert plain["history"] == [1.0] * 20

    def test_it_keeps_structure_ties_and_strides(self):
        w = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        tree = {"a": w, "b": (w, None, 3, "x"), "m": fl.Dense(2, 1)}
        copy = snapshot(tree)
        assert copy["a"] is copy["b"][0]
        assert copy["a"].stride() == w.stride()
        assert copy["a"].data_ptr() != w.data_ptr()
        assert copy["b"][1:] == tree["b"][1:]
        assert fl.tree.allclose(copy["m"], tree["m"], rtol=0, atol=0)

    def test_a_donated_tensor_can_not_be_saved(self, tmp_path):
        model = fl.Dense(3, 2)
        grads = fl.gradient(lambda m: m(torch.ones(1, 3)).sum(), model)
        fl.update(fl.setup(fl.Adam(), model), model, grads, donate=True)
        with AsyncWriter(Store(tmp_path)) as writer, pytest.raises(RuntimeError, match="was donated"):
            writer.save(1, model)


class TestOneAtATime:
    def test_a_save_waits_for_the_one_before_and_none_is_lost(self, tmp_path):
        store = Slow(tmp_path, keep=None)
        with AsyncWriter(store) as writer:
            writer.save(1, {"w": torch.ones(1)})
            assert store.list() == []  # the run went on before it was written
            threading.Timer(0.2, store.go.set).start()
            writer.save(2, {"w": torch.ones(1)})
            assert [entry.step for entry in store.list()][:1] == [1]
        assert [entry.step for entry in store.list()] == [1, 2]
        assert store.most == 1

    def test_saves_from_several_threads_are_written_one_by_one(self, tmp_path):
        store = Slow(tmp_path, keep=None)
        store.go.set()
        writer = AsyncWriter(store)
        order = threading.Lock()
        steps = iter(range(1, 41))

        def save():
            for _ in range(10):
                with order:
                    step = next(steps)
                    writer.save(step, {"w": torch.full((1000,), float(step))}, step)

        threads = [threading.Thread(target=save) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.close()
        assert store.most == 1
        for entry in store.list():
            tree, plain = store.load(entry, like={"w": torch.empty(1000)})
            assert tree["w"].unique().tolist() == [entry.step] == [plain]
        assert len(store.list()) == 40

    def test_a_store_that_several_threads_save_to_stays_whole(self, tmp_path):
        store = Store(tmp_path, keep=2)
        threads = [
            threading.Thread(target=store.save, args=(1, {"w": torch.ones(1000)}, n)) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.close()
        tree, plain = store.load(store.newest(), like={"w": torch.empty(1000)})
        assert tree["w"].sum() == 1000
        assert plain in range(8)


class TestErrors:
    def broken(self, tmp_path):
        class Broken(Store):
            def write(self, prepared):
                raise OSError("the disk is gone")

        return Broken(tmp_path)

    def test_wrong_arguments_are_raised_at_once(self, tmp_path):
        with AsyncWriter(Store(tmp_path)) as writer:
            with pytest.raises(TypeError, match=r"\['f'\] is a builtin"):
                writer.save(1, {}, {"f": len})
            writer.save(1, {})
        assert writer.store.newest().step == 1

    def test_close_raises_what_the_thread_met_and_gives_the_lock_back(self, tmp_path):
        writer = AsyncWriter(self.broken(tmp_path))
        writer.save(1, {})
        with pytest.raises(OSError, match="the disk is gone") as info:
            writer.close()
        assert "in the background" in info.value.__notes__[0]
        Store(tmp_path).open().close()
        writer.close()  # said once

    def test_a_block_that_failed_keeps_its_own_error(self, tmp_path):
        def fail():
            with AsyncWriter(self.broken(tmp_path)) as writer:
                writer.save(1, {})
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine") as info:
            fail()
        assert info.value.__notes__ == ["besides, a checkpoint was not written: the disk is gone"]

    def test_a_writer_that_is_forgotten_warns(self, tmp_path):
        writer = AsyncWriter(self.broken(tmp_path))
        writer.save(1, {})
        with pytest.warns(RuntimeWarning, match="nobody closed the writer, .* the disk is gone"):
            del writer


EXIT = """
import sys, time, torch
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.checkpoints.writer import AsyncWriter

class Slow(Store):
    def write(self, prepared):
        time.sleep(0.5)
        if "fail" in sys.argv:
            raise OSError("the disk is gone")
        super().write(prepared)

writer = AsyncWriter(Slow(sys.argv[1]))
writer.save(1, {"w": torch.ones(2)}, "whole")
"""


@pytest.mark.parametrize("fail", [False, True], ids=["whole", "failing"])
def test_the_end_of_the_interpreter_waits_and_warns(tmp_path, fail):
    words = [sys.executable, "-c", textwrap.dedent(EXIT), str(tmp_path), *["fail"] * fail]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    store = Store(tmp_path)
    if fail:
        assert (
            "RuntimeWarning: nobody closed the writer, so nobody has seen that the disk is gone" in run.stderr
        )
        assert store.newest() is None
    else:
        assert run.stderr == ""
        assert store.load(store.newest(), like={"w": torch.empty(2)})[1] == "whole"
