"""Sharded checkpoints: every rank its share, loaded by any number of ranks, whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike.distributed.checkpoints import consolidate, load, save
from fluxlike.files import durable
from fluxlike.files.reader import TensorFile
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten
from tests.distributed.ranks import RankError, run

pytestmark = pytest.mark.slow  # processes take a while to start and to meet

RULE = fl.AdamW(1e-2)


def perceptron():
    with fl.seeded(fl.Key(0)):
        model = fl.Chain(fl.Dense(5, 7, fl.tanh), fl.BatchNorm(7), fl.Dense(7, 6))
        return fl.f64(fl.Chain(model, fl.Dense(6, 6), fl.tanh, fl.Dense(6, 3)))


def tied():
    shared = fl.Dense(6, 6)
    return fl.Chain(fl.Dense(5, 6), shared, fl.relu, shared)


def rows():
    return torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss(model, x):
    return (model(x) ** 2).mean()


def steps(count, model, state, x):
    for _ in range(count):
        model, state = fl.update(state, model, fl.gradient(loss, model, x))
    return model, state


PLANS = {
    "replicated": d.replicate,
    "sharded": d.shard,
    "columns": lambda: d.by_path({r"weight$": columns}, rest=d.shard()),
    "large ones": lambda: d.shard(at_least=20),
}


def columns(path, x, mesh):
    return {0: x.ndim - 1}


def on_mesh(plan, model=perceptron):
    return fl.to_device(model(), d.mesh(), PLANS[plan]())


def run_of(model):
    return {"model": model, "state": fl.setup(RULE, model), "key": fl.Key(5), "epoch": 0, "lr": 0.0}


def same_bits(a, b):
    (x, one), (y, other) = flatten(a), flatten(b)
    return one == other and all(map(equal, x, y))


def equal(x, y):
    if isinstance(x, Assigned):
        return equal(x.value, y.value)
    if isinstance(x, torch.Tensor):
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            return False
        x, y = (t.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (x, y))
        return torch.equal(x, y)
    if isinstance(x, (np.ndarray, np.generic)):
        return type(x) is type(y) and x.dtype == y.dtype and np.array_equal(x, y)
    return x is y if callable(x) else x == y and type(x) is type(y)


def saved(folder, plan):
    """A run over a mesh, saved after three steps; what it was then, and two steps later."""
    model = on_mesh(plan)
    x = d.shard_batch(rows(), d.mesh())
    model, state = steps(3, model, fl.setup(RULE, model), x)
    tree = {"model": model, "state": state, "key": fl.Key(7), "epoch": 3, "lr": 0.25}
    save(folder, tree)
    fl.save(folder / "gathered.safetensors", tree)
    return fl.cpu(tree), fl.cpu(steps(2, model, state, x))


def loaded(path, plan):
    """A run from a checkpoint, and two steps later; and whether all lies as the plan says."""
    like = run_of(on_mesh(plan))
    tree = load(path, like=like)
    lies = all(
        type(x) is type(y) and x.placements == y.placements
        for x, y in zip(fl.trainables(tree["model"]), fl.trainables(like["model"]), strict=True)
    )
    later = steps(2, tree["model"], tree["state"], d.shard_batch(rows(), d.mesh()))
    return fl.cpu(tree), fl.cpu(later), lies


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a checkpoint of three ranks, the tree in it, and model and state two steps later."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tree, later = run(saved, 3, folder, "sharded")[0]
    return folder, tree, later


@pytest.fixture
def copied(checkpoint, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(checkpoint[0], folder)
    return folder


def far(a, b):
    pairs = zip(fl.trainables(a), fl.trainables(b), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


class TestOtherRanks:
    @pytest.mark.parametrize(
        ("ranks", "plan"),
        [(2, "sharded"), (2, "replicated"), (2, "columns"), (3, "sharded"), (3, "large ones")],
    )
    def test_another_number_of_ranks_and_another_plan_gives_the_same_bits_and_run(
        self, checkpoint, ranks, plan
    ):
        folder, tree, later = checkpoint
        for found, after, lies in run(loaded, ranks, folder, plan):
            assert same_bits(found, tree)
            assert far(after, later) < 1e-14
            assert lies

    def test_a_single_process_gives_the_same_bits_and_run(self, checkpoint):
        folder, tree, later = checkpoint
        found = load(folder, like=run_of(perceptron()))
        assert same_bits(found, tree)
        assert far(steps(2, found["model"], found["state"], rows()), later) < 1e-14

    def test_a_single_process_saves_for_many(self, checkpoint, tmp_path):
        save(tmp_path, checkpoint[1])
        for found, _, _ in run(loaded, 2, tmp_path, "sharded"):
            assert same_bits(found, checkpoint[1])

    def test_the_meta_device_is_filled(self, checkpoint):
        like = fl.to_device(run_of(perceptron()), "meta")
        assert same_bits(load(checkpoint[0], like=like), checkpoint[1])

    @pytest.mark.parametrize("plan", ["sharded", "columns"])
    def test_a_mesh_of_two_axes(self, tmp_path, plan):
        trees = run(over_two_axes, 4, tmp_path, plan)
        assert all(same_bits(tree, perceptron()) for tree in trees)
        assert same_bits(load(tmp_path, like=fl.tree.zeros_like(perceptron())), perceptron())


def over_two_axes(folder, plan):
    mesh = d.mesh(data=2, model=2)
    both = d.combined(d.split(0, "model"), PLANS[plan]())
    save(folder, fl.to_device(perceptron(), mesh, both))
    like = fl.to_device(
        fl.tree.zeros_like(perceptron()), mesh, d.combined(PLANS[plan](), d.split(-1, "model"))
    )
    return fl.cpu(load(folder, like=like))


def meta_over_a_mesh(folder):
    like = fl.to_device(run_of(fl.to_device(perceptron(), "meta")), d.mesh(), d.shard())
    tree = load(folder, like=like)
    return fl.cpu(tree), {x.to_local().device.type for x in fl.trainables(tree["model"])}


def test_a_tree_over_a_mesh_of_the_meta_device_is_filled(checkpoint):
    for tree, devices in run(meta_over_a_mesh, 2, checkpoint[0]):
        assert same_bits(tree, checkpoint[1])
        assert devices == {"cpu"}


def everything():
    """A tree of every kind of leaf."""
    return {
        "wide": torch.randn(7, 3, dtype=torch.complex128),
        "conjugate": torch.randn(6, dtype=torch.complex64).conj(),
        "half": torch.randn(5, 4).bfloat16(),
        "eighth": torch.randn(6).to(torch.float8_e4m3fn),
        "truths": torch.tensor([True, False, True]),
        "whole": torch.arange(9).reshape(3, 3),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
        "turned": torch.randn(4, 6).T,
        "assigned": Assigned(torch.randn(3)),
        "array": np.arange(6.0).reshape(2, 3),
        "scalar": np.float32(1.5),
        "plain": (None, True, 3, 0.1, float("inf"), 1 + 2j, "text", b"bytes"),
        "function": torch.relu,
        "key": fl.Key(3),
        "layer": fl.BatchNorm(4),
    }


def blank(tree):
    zeros = fl.fmap(lambda x: torch.zeros_like(x.resolve_conj()), tree)
    assigned, array = Assigned(torch.zeros(3)), np.zeros((2, 3))
    plain = (None, False, 0, 0.0, 0.0, 0j, "", b"")
    return {**zeros, "assigned": assigned, "array": array, "scalar": np.float32(0), "plain": plain}


def kinds(folder):
    torch.manual_seed(0)
    tree = everything()
    save(folder, fl.to_device(tree, d.mesh(), d.shard()))
    plan = d.by_path({"eighth": d.replicate()}, rest=d.shard())  # gloo can't gather eight bits
    found = load(folder, like=fl.to_device(blank(everything()), d.mesh(), plan))
    return same_bits(fl.cpu(found), tree)


def test_every_kind_of_leaf_comes_back_exactly(tmp_path):
    assert all(run(kinds, 2, tmp_path))
    torch.manual_seed(0)
    tree = everything()
    assert same_bits(load(tmp_path, like=blank(tree)), tree)


class TestTies:
    def test_a_tied_tensor_is_written_once_and_stays_tied(self, tmp_path):
        assert all(run(ties, 2, tmp_path))
        assert not [name for name in stored(tmp_path) if "layers[3]" in name]

    def test_places_that_are_tied_only_in_the_model_must_agree(self, tmp_path):
        w = torch.randn(4, 2)
        save(tmp_path, {"a": w, "b": w.clone()})
        shared = torch.zeros(4, 2)
        found = load(tmp_path, like={"a": shared, "b": shared})
        assert found["a"] is found["b"]
        assert torch.equal(found["a"], w)
        save(tmp_path, {"a": w, "b": w + 1})
        with pytest.raises(ValueError, match=r"\['b'\] is tied to \['a'\] in the model, but their values"):
            load(tmp_path, like={"a": shared, "b": shared})

    def test_places_that_differ_on_one_rank_are_an_error_on_all(self, tmp_path):
        w = torch.randn(4, 2)
        w[0] = float("nan")
        other = w.clone()
        other[3, 1] += 1
        save(tmp_path, {"a": w, "b": other})
        for rank, text in enumerate(run(untied, 2, tmp_path)):
            assert ("rank 1 of the job failed" in text) == (rank == 0)
            assert "['b'] is tied to ['a'] in the model, but their values differ" in text

    def test_places_that_are_tied_only_in_the_checkpoint_part(self, tmp_path):
        w = torch.randn(4, 2)
        save(tmp_path, {"a": w, "b": w})
        found = load(tmp_path, like={"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)})
        assert torch.equal(found["a"], w)
        assert torch.equal(found["b"], w)
        assert found["a"].data_ptr() != found["b"].data_ptr()

    def test_counters_that_states_share_may_part(self, tmp_path):
        model = {"a": torch.ones(4), "b": torch.ones(4)}
        begun = fl.setup(RULE, model)
        _, state = fl.update(begun, model, {"a": torch.ones(4), "b": None})
        save(tmp_path, state)
        found = load(tmp_path, like=begun)
        assert same_bits(found, state)
        assert [found[name].state.step.item() for name in "ab"] == [1, 0]


def ties(folder):
    model = fl.to_device(fl.Chain(*tied().layers), d.mesh(), d.shard())
    save(folder, model)
    found = load(folder, like=fl.to_device(tied(), d.mesh(), d.replicate()))
    return found.layers[1].weight is found.layers[3].weight and same_bits(fl.cpu(found), fl.cpu(model))


def untied(folder):
    shared = fl.to_device(torch.zeros(4, 2), d.mesh(), d.shard())
    return error_of(load, folder, like={"a": shared, "b": shared})


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def files(folder):
    return sorted(p for p in Path(folder).iterdir() if p.suffix == ".safetensors" and p.name[16:17] == "-")


def stored(folder):
    names = []
    for path in files(folder):
        with TensorFile(path) as file:
            names += file.tensors
    return names


class TestShares:
    def test_every_rank_writes_its_share_and_nothing_is_written_twice(self, tmp_path):
        run(large, 3, tmp_path)
        sizes = [file.stat().st_size for file in files(tmp_path)]
        total = 3 * 300 * 400 * 4
        assert len(sizes) == 3
        assert max(sizes) < 1.02 * total / 3
        assert sum(sizes) < 1.02 * total

    def test_what_all_ranks_hold_is_written_by_one(self, tmp_path):
        run(replicated, 3, tmp_path)
        assert sorted(stored(tmp_path)) == [f"[{i}]" for i in range(6)]
        assert max(file.stat().st_size for file in files(tmp_path)) < 1.2 * 2 * 40_000

    @pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
    def test_each_rank_reads_its_part(self, tmp_path):
        run(large, 3, tmp_path)
        whole = sum(file.stat().st_size for file in files(tmp_path))
        assert all(bytes_read < 0.45 * whole for bytes_read in run(reading, 3, tmp_path))
        consolidate(tmp_path, tmp_path / "one.safetensors")
        assert all(n < 0.85 * whole for n in run(reading, 3, tmp_path / "one.safetensors"))

    @pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
    def test_of_one_large_part_each_rank_reads_its_rows(self, tmp_path):
        save(tmp_path, [torch.randn(7000, 1000)])
        whole = sum(file.stat().st_size for file in files(tmp_path))
        assert all(n < 0.6 * whole for n in run(reading_rows, 3, tmp_path))


def reading_rows(path):
    like = fl.to_device([torch.zeros(7000, 1000)], d.mesh(), d.shard())
    dist.barrier()
    before = bytes_read()
    load(path, like=like)
    return bytes_read() - before


def large(folder):
    save(folder, fl.to_device([torch.randn(300, 400) for _ in range(3)], d.mesh(), d.shard()))


def replicated(folder):
    save(folder, fl.to_device([torch.randn(100, 100) for _ in range(6)], d.mesh(), d.replicate()))


def reading(path):
    like = fl.to_device([torch.zeros(300, 400) for _ in range(3)], d.mesh(), d.shard())
    dist.barrier()
    before = bytes_read()
    load(path, like=like)
    return bytes_read() - before


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


class TestErrors:
    @pytest.mark.parametrize("ranks", [1, 2])
    def test_what_does_not_fit_is_named_as_by_load(self, checkpoint, tmp_path, ranks):
        folder, tree, _ = checkpoint
        fl.save(tmp_path / "one.safetensors", tree)
        for change in CHANGES:
            here = CHANGES[change](run_of(perceptron()))
            wanted = error_of(fl.load, tmp_path / "one.safetensors", like=here)
            assert wanted.startswith("ValueError: the file"), change
            texts = [error_of(load, folder, like=here)] if ranks == 1 else run(misfit, ranks, folder, change)
            for text in texts:
                assert text.partition("model:")[2] == wanted.partition("model:")[2] != ""

    def test_trees_that_differ_between_ranks_are_refused(self, tmp_path):
        for text in run(different, 3, tmp_path):
            assert text == (
                "ValueError: the ranks have different trees: ['w'] is torch.float32 of shape (2,) on rank 0 "
                "and torch.float32 of shape (3,) on rank 2; every rank must save the same tree"
            )
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_without_a_checkpoint(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of fluxlike\.distributed\.save in"):
            load(tmp_path, like={"w": torch.zeros(2)})
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load(tmp_path / "nothing", like={"w": torch.zeros(2)})

    def test_a_file_in_the_place_of_the_folder(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(NotADirectoryError, match="a checkpoint needs a folder"):
            save(tmp_path / "file", {"w": torch.zeros(2)})

    def test_arguments_in_the_wrong_order(self, tmp_path):
        with pytest.raises(TypeError, match=r"write save\(folder, tree\)"):
            save({"w": torch.zeros(2)}, tmp_path)

    def test_tensors_without_data(self, tmp_path):
        with pytest.raises(ValueError, match=r"\['w'\] is on the meta device"):
            save(tmp_path, {"w": torch.zeros(2, device="meta")})


CHANGES = {
    "missing": lambda tree: {**tree, "more": torch.zeros(2)},
    "unexpected": lambda tree: {name: tree[name] for name in tree if name != "key"},
    "shape": lambda tree: {**tree, "key": fl.Key(0).split(3)},
    "dtype": lambda tree: {**tree, "model": fl.f32(tree["model"])},
    "kind": lambda tree: {**tree, "epoch": torch.zeros(())},
    "class": lambda tree: {**tree, "model": fl.Chain(fl.Dense(5, 3))},
    "function": lambda tree: {
        **tree,
        "model": fl.Chain(*tree["model"].layers[:2], fl.relu, tree["model"].layers[3]),
    },
}


def misfit(folder, change):
    return error_of(load, folder, like=CHANGES[change](run_of(on_mesh("sharded"))))


def different(folder):
    return error_of(save, folder, {"w": torch.zeros(3 if dist.get_rank() == 2 else 2)})


class TestDamage:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_a_changed_byte_is_an_error_or_changes_nothing(self, checkpoint, copied, data):
        file = data.draw(st.sampled_from([*files(copied), copied / "checkpoint.json"]))
        raw = file.read_bytes()
        at = data.draw(st.integers(0, len(raw) - 1))
        changed = bytes([*raw[:at], raw[at] ^ data.draw(st.integers(1, 255)), *raw[at + 1 :]])
        file.write_bytes(changed)
        try:
            found = load(copied, like=run_of(perceptron()))
        except (ValueError, FileNotFoundError):
            pass
        else:
            assert same_bits(found, checkpoint[1])
        finally:
            file.write_bytes(raw)

    def test_every_byte_of_the_tensors_is_checked(self, copied):
        for file in files(copied):
            raw = bytearray(file.read_bytes())
            start = 8 + int.from_bytes(raw[:8], "little")
            for at in range(start, len(raw), 97):
                raw[at] ^= 1
                file.write_bytes(raw)
                assert "checksum" in error_of(load, copied, like=run_of(perceptron()))
                raw[at] ^= 1
            file.write_bytes(raw)

    def test_a_shorter_file_is_an_error(self, copied):
        for file in (*files(copied), copied / "checkpoint.json"):
            raw = file.read_bytes()
            for size in (0, 5, 100, len(raw) // 2, len(raw) - 1):
                file.write_bytes(raw[:size])
                with pytest.raises(ValueError, match="damaged"):
                    load(copied, like=run_of(perceptron()))
            file.write_bytes(raw)

    def test_a_missing_file_is_named(self, copied):
        file = files(copied)[1]
        file.unlink()
        with pytest.raises(FileNotFoundError, match=f"there is no file {file}, which .* names"):
            load(copied, like=run_of(perceptron()))

    def test_a_file_of_another_checkpoint_is_an_error(self, copied, tmp_path):
        other = run_of(perceptron())
        save(tmp_path / "other", other)
        shutil.copy(files(tmp_path / "other")[0], files(copied)[0])
        with pytest.raises(ValueError, match="damaged"):
            load(copied, like=other)

    def test_damage_that_one_rank_meets_is_an_error_on_all(self, copied):
        file = files(copied)[2]
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
        texts = run(misread, 3, copied)
        assert all("checksum" in text for text in texts)
        assert any("rank" in text and "of the job failed" in text for text in texts)

    def test_damage_to_one_file_is_found_whichever_rank_needs_it(self, checkpoint, tmp_path):
        file = tmp_path / "one.safetensors"
        consolidate(checkpoint[0], file)
        raw = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(raw[:8], "little")
        for at in range(start, len(raw), 997):
            raw[at] ^= 1
            file.write_bytes(raw)
            assert all("checksum" in text for text in run(misread, 2, file))
            raw[at] ^= 1

    @pytest.mark.parametrize(
        "change",
        [
            {"token": "../../../../etc"},
            {"token": 5},
            {"version": 2},
            {"tensors": []},
            {"tree": None},
            {"tree": "{}"},
            {"w": None},
            {"w": ["F32", [4, 2], "0:0,0:4,2"]},
            {"w": ["F32", [4, 2], "0:0,0:2,2:00000000 0:2,0:3,2:00000000"]},
            {"w": ["F32", [4, 2], "0:0,0:2,2:00000000"]},
            {"w": ["F32", [4, 2], "0:0,0:4,2:00000000 1:0,0:4,2:00000000"]},
            {"w": ["F32", [4, 2], "0:0,0:3,2:00000000 1:2,0:2,2:00000000"]},
            {"w": ["F32", [4, 2], "0:0,0:4,2:00000000.00000000"]},
            {"w": ["F32", [4, 2], "0:0:4:00000000"]},
            {"w": ["F32", [4, 2], "0:0,0:2,1:00000000 0:0,1:2,1:00000000 0:2,0:2,1:00000000"]},
            {"w": ["F32", [2**62, 2], f"0:0,0:{2**62},2:00000000"]},
            {"w": ["F32", [-4, 2], ""]},
            {"w": ["F32", [0, 2], "0:0,0:0,2:00000000"]},
            {"w": ["pickle", [4, 2], "0:0,0:4,2:00000000"]},
            {"w": [["F32"], [4, 2], "0:0,0:4,2:00000000"]},
            {"v": ["F32", [1], "0:0:1:00000000"]},
        ],
        ids=str,
    )
    def test_an_index_that_lies_is_refused(self, tmp_path, change):
        save(tmp_path, {"w": torch.randn(4, 2)})
        about = json.loads((tmp_path / "checkpoint.json").read_text())
        del about["crc32"]
        for key, value in change.items():
            if key in about:
                about[key] = value
            else:
                about["tensors"][f"['{key}']"] = value
        text = json.dumps(about)[:-1]
        (tmp_path / "checkpoint.json").write_text(f'{text}, "crc32": {zlib.crc32(text.encode())}}}')
        with pytest.raises(ValueError, match="is damaged, or no index"):
            load(tmp_path, like={"w": torch.zeros(4, 2)})


def misread(path):
    return error_of(load, path, like=run_of(on_mesh("sharded")))


#: Saves zeros, and then ones in a process that ends at its first, second, … call of the system.
KILLED = textwrap.dedent(
    """
    import json, os, sys
    import torch
    from fluxlike.distributed.checkpoints import load, save

    def end_at(call):
        left = [call]
        for name in ("open", "write", "fsync", "close", "replace", "unlink"):
            def counted(*args, act=getattr(os, name), **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(7)
                return act(*args, **kwargs)
            setattr(os, name, counted)

    torch.set_num_threads(1)
    folder, found, killed = sys.argv[1], [], True
    while killed:
        save(folder, {"w": torch.zeros(40)})
        process = os.fork()
        if not process:
            end_at(len(found))
            save(folder, {"w": torch.ones(40)})
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
        found.append((killed, load(folder, like={"w": torch.empty(40)})["w"].unique().tolist()))
    print(json.dumps(found))
    """
)


class TestHalfWritten:
    def test_a_rank_that_can_not_write_is_an_error_on_all_and_the_older_checkpoint_stays(self, tmp_path):
        for rank, (text, found, names) in enumerate(run(full_disk, 3, tmp_path)):
            assert text.startswith("OSError: [Errno 28] ")
            assert ("rank 1 of the job failed" in text) == (rank != 1)
            assert same_bits(found, perceptron())
            assert names[0] == names[1]

    def test_a_process_that_is_killed_at_any_instant_leaves_a_whole_checkpoint(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
        assert all(len(values) == 1 for _, values in found)
        ends = [(killed, values[0]) for killed, values in found]
        old, new = ends.index((True, 1.0)), len(ends) - 1
        assert old > 5
        assert ends == [(True, 0.0)] * old + [(True, 1.0)] * (new - old) + [(False, 1.0)]
        save(tmp_path, {"w": torch.ones(40)})
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.slow
    def test_a_rank_that_is_killed_while_it_saves_leaves_the_older_checkpoint_to_others(self, tmp_path):
        tree, later = run(saved, 3, tmp_path, "sharded")[0]
        with pytest.raises(RankError):
            run(killed_while_saving, 3, tmp_path)
        for found, after, _ in run(loaded, 2, tmp_path, "columns"):
            assert same_bits(found, tree)
            assert far(after, later) < 1e-14

    def test_a_first_save_that_died_is_told_from_an_empty_folder(self, copied):
        (copied / "checkpoint.json").unlink()
        with pytest.raises(FileNotFoundError, match="a save into it did not come to its end"):
            load(copied, like=run_of(perceptron()))

    def test_a_new_checkpoint_takes_the_place_of_the_older_one_and_of_nothing_else(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        fl.save(tmp_path / "weights.safetensors", {"w": torch.ones(1)})
        save(tmp_path, {"w": torch.zeros(3)})
        (tmp_path / f".{files(tmp_path)[0].name}.{'0' * 16}.tmp").write_bytes(
            b"left by a save that was killed"
        )
        first = files(tmp_path)
        save(tmp_path, {"w": torch.ones(3)})
        assert not set(first) & set(files(tmp_path))
        assert len(list(tmp_path.iterdir())) == 4
        assert torch.equal(load(tmp_path, like={"w": torch.zeros(3)})["w"], torch.ones(3))


def killed_while_saving(folder):
    if dist.get_rank() == 1:
        durable.os.write = lambda *args: os._exit(9)
    save(folder, run_of(on_mesh("sharded")))


def full_disk(folder):
    model = on_mesh("sharded")
    save(folder, model)
    dist.barrier()
    before = sorted(p.name for p in folder.iterdir())
    act = durable.os.write

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    later = fl.tree.add(model, model)
    with contextlib.ExitStack() as stack:
        if dist.get_rank() == 1:
            durable.os.write = full
            stack.callback(setattr, durable.os, "write", act)
        text = error_of(save, folder, later)
    dist.barrier()
    after = sorted(p.name for p in folder.iterdir())
    return text, load(folder, like=perceptron()), (before, after)


class TestOneFile:
    def test_a_checkpoint_becomes_the_file_that_save_writes(self, checkpoint, tmp_path):
        folder, tree, _ = checkpoint
        consolidate(folder, tmp_path / "one.safetensors")
        fl.save(tmp_path / "saved.safetensors", tree)
        assert same_bits(fl.load(tmp_path / "one.safetensors", like=run_of(perceptron())), tree)
        assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "saved.safetensors").read_bytes()

    @pytest.mark.parametrize("plan", ["sharded", "columns", "replicated"])
    def test_a_file_is_loaded_over_a_mesh(self, checkpoint, tmp_path, plan):
        consolidate(checkpoint[0], tmp_path / "one.safetensors")
        for tree, _, lies in run(loaded, 2, tmp_path / "one.safetensors", plan):
            assert same_bits(tree, checkpoint[1])
            assert lies

    def test_ranks_consolidate_together(self, checkpoint, tmp_path):
        run(consolidate, 2, checkpoint[0], tmp_path / "one.safetensors")
        assert same_bits(fl.load(tmp_path / "one.safetensors", like=run_of(perceptron())), checkpoint[1])

    def test_every_kind_of_leaf_comes_back_from_one_file(self, tmp_path):
        run(kinds, 2, tmp_path)
        torch.manual_seed(0)
        tree = everything()
        consolidate(tmp_path, tmp_path / "one.safetensors")
        assert same_bits(fl.load(tmp_path / "one.safetensors", like=blank(tree)), tree)
        assert same_bits(load(tmp_path / "one.safetensors", like=blank(tree)), tree)

    def test_tensors_of_many_blocks(self, tmp_path):
        tree = {"w": torch.randn(1500, 1111), "b": torch.randint(0, 2, (9_000_001,)).bool()}
        save(tmp_path, tree)
        assert same_bits(load(tmp_path, like=fl.tree.zeros_like(tree)), tree)
        for found in run(of_many_blocks, 2, tmp_path):
            assert all(torch.equal(found[name], tree[name]) for name in tree)
        consolidate(tmp_path, tmp_path / "one.safetensors")
        assert same_bits(fl.load(tmp_path / "one.safetensors", like=tree), tree)

    def test_damage_is_an_error_and_leaves_no_file(self, copied, tmp_path):
        file = files(copied)[0]
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
        with pytest.raises(ValueError, match="checksum"):
            consolidate(copied, tmp_path / "one.safetensors")
        assert not (tmp_path / "one.safetensors").exists()

    def test_a_file_of_others_is_refused_with_advice(self, tmp_path):
        import safetensors.torch

        safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "theirs.safetensors")
        with pytest.raises(ValueError, match=r"fluxlike\.load_checkpoint"):
            load(tmp_path / "theirs.safetensors", like={"w": torch.zeros(2)})

    @pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
    def test_torch_reads_the_files_of_the_ranks(self, checkpoint, tmp_path):
        for file in files(checkpoint[0]):
            shutil.copy(file, tmp_path)
        found = {"['model'].layers[1].weight": torch.zeros(6, 6, dtype=torch.float64)}
        dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)))
        assert torch.equal(found["['model'].layers[1].weight"], checkpoint[1]["model"].layers[1].weight)


def of_many_blocks(folder):
    mesh = d.mesh()
    w = fl.to_device(torch.zeros(1500, 1111), mesh, columns)
    b = fl.to_device(torch.zeros(9_000_001, dtype=torch.bool), mesh)
    return fl.cpu(load(folder, like={"w": w, "b": b}))


class TestSaveAndLoad:
    """`fl.save` and `fl.load` of trees over a mesh."""

    def test_the_first_rank_writes_the_file_of_a_single_process(self, checkpoint, tmp_path):
        folder, tree, _ = checkpoint
        fl.save(tmp_path / "one.safetensors", tree)
        assert (folder / "gathered.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()

    @pytest.mark.parametrize("plan", ["sharded", "columns", "replicated"])
    def test_load_lays_out_as_the_tree_given(self, checkpoint, plan):
        for tree, lies in run(plainly_loaded, 2, checkpoint[0] / "gathered.safetensors", plan):
            assert same_bits(tree, checkpoint[1])
            assert lies

    def test_a_file_that_can_not_be_written_is_an_error_on_all_ranks(self, tmp_path):
        for text in run(plainly_saved, 2, tmp_path / "nowhere" / "one.safetensors"):
            assert "FileNotFoundError" in text
            assert "there is no folder" in text


def plainly_loaded(file, plan):
    like = run_of(on_mesh(plan))
    tree = fl.load(file, like=like)
    pairs = zip(fl.trainables(tree["model"]), fl.trainables(like["model"]), strict=True)
    return fl.cpu(tree), all(type(x) is type(y) and x.placements == y.placements for x, y in pairs)


def plainly_saved(file):
    return error_of(fl.save, file, on_mesh("sharded"))


def learner(folder, over, plan="sharded", **settings):
    model = perceptron()
    generator = torch.Generator().manual_seed(2)
    data = [
        tuple(torch.randn(12, n, dtype=torch.float64, generator=generator) for n in (5, 3)) for _ in range(4)
    ]
    if over:
        model, data = on_mesh(plan), d.shard_batch(data, d.mesh())
    saving = fl.callbacks.Checkpointer(folder, **settings)
    return fl.Learner(model, data, RULE, fl.losses.mse, callbacks=[saving], progress=False)


def fitted(folder, epochs, plan, resume, settings):
    found = fl.fit(learner(folder, True, plan, **settings), epochs, resume=resume)
    return fl.cpu(found.model), found.step, found.history["training", "loss"]


class TestLearners:
    @pytest.mark.parametrize("settings", [{"every": 1, "by": "loss"}, {"background": False}], ids=str)
    def test_a_fit_goes_on_with_other_ranks_and_on_one_device(self, tmp_path, settings):
        whole = fl.fit(learner(tmp_path / "whole", False), 4)
        run(fitted, 3, tmp_path / "run", 2, "sharded", False, settings)
        _, step, losses = run(fitted, 2, tmp_path / "run", 3, "columns", True, settings)[1]
        assert (step, len(losses)) == (12, 3)
        found = fl.fit(learner(tmp_path / "run", False, **settings), 4, resume=True)
        assert found.step == 16
        assert np.allclose(
            found.history["training", "loss"], whole.history["training", "loss"], rtol=0, atol=1e-14
        )
        assert far(found.model, whole.model) < 1e-14

    def test_an_older_run_in_the_folder_is_an_error_on_all_ranks(self, tmp_path):
        fl.fit(learner(tmp_path, False), 1)
        for text in run(begun_anew, 2, tmp_path):
            assert "LearningError" in text
            assert "give this run a folder of its own" in text


def begun_anew(folder):
    return error_of(fl.fit, learner(folder, True), 1)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shapes=st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=4),
    dims=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex128]),
)
def test_any_shapes_and_any_divisions_come_back(tmp_path_factory, shapes, dims, dtype):
    folder = tmp_path_factory.mktemp("any")
    trees = run(divided_save, 3, folder, shapes, dims[:4], dtype)
    for found in run(divided_load, 2, folder, shapes, dims[4:], dtype):
        assert same_bits(found, trees[0])


def divided(tree, dims):
    number = iter(range(len(dims)))
    return [
        fl.to_device(x, d.mesh(), lambda path, x, mesh: {0: dims[next(number)] % x.ndim}) if x.ndim else x
        for x in tree
    ]


def divided_save(folder, shapes, dims, dtype):
    tree = [torch.randn(shape).to(dtype) for shape in shapes]
    save(folder, divided(tree, dims))
    return tree


def divided_load(folder, shapes, dims, dtype):
    return fl.cpu(load(folder, like=divided([torch.zeros(shape, dtype=dtype) for shape in shapes], dims)))


def test_save_and_load_need_no_part_of_torch_distributed():
    program = (
        "import sys, os, tempfile, torch, fluxlike as fl\n"
        "before = {m for m in sys.modules if m.startswith('torch.distributed.')}\n"
        "file = os.path.join(tempfile.mkdtemp(), 'w.safetensors')\n"
        "fl.save(file, {'w': torch.ones(1)})\n"
        "fl.load(file, like={'w': torch.ones(1)})\n"
        "assert {m for m in sys.modules if m.startswith('torch.distributed.')} == before\n"
        "assert 'torch.distributed.checkpoint' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
