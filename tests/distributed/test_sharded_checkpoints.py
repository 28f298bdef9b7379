"""Sharded checkpoints: every rank its share, loaded by any number of ranks, and all comes back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike.distributed.checkpoints import consolidate, load, save
from tests.distributed.ranks import run
from tests.distributed.sharded_trees import (
    PLANS,
    RULE,
    blank,
    error_of,
    everything,
    far,
    files,
    kinds,
    loaded,
    perceptron,
    rows,
    run_of,
    same_bits,
    steps,
    stored,
)

pytestmark = pytest.mark.slow  # processes take a while to start and to meet


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


def tied():
    shared = fl.Dense(6, 6)
    return fl.Chain(fl.Dense(5, 6), shared, fl.relu, shared)


def ties(folder):
    model = fl.to_device(fl.Chain(*tied().layers), d.mesh(), d.shard())
    save(folder, model)
    found = load(folder, like=fl.to_device(tied(), d.mesh(), d.replicate()))
    return found.layers[1].weight is found.layers[3].weight and same_bits(fl.cpu(found), fl.cpu(model))


def untied(folder):
    shared = fl.to_device(torch.zeros(4, 2), d.mesh(), d.shard())
    return error_of(load, folder, like={"a": shared, "b": shared})


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
