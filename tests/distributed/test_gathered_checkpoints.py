"""One file of a tree over a mesh: consolidated, or gathered as it is saved; read by any number of ranks."""

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike.distributed.checkpoints import consolidate, load, save
from tests.distributed.ranks import run
from tests.distributed.sharded_trees import (
    RULE,
    blank,
    columns,
    error_of,
    everything,
    far,
    files,
    kinds,
    loaded,
    on_mesh,
    perceptron,
    run_of,
    same_bits,
)

pytestmark = pytest.mark.slow  # processes take a while to start and to meet


class TestOneFile:
    def test_a_checkpoint_becomes_the_file_that_save_writes(self, checkpoint, tmp_path):
        folder, tree, _ = checkpoint
        consolidate(folder, tmp_path / "one.safetensors")
        fl.save(tmp_path / "saved.safetensors", tree)
        assert same_bits(fl.load(tmp_path / "one.safetensors", like=run_of(perceptron())), tree)
        assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "saved.safetensors").read_bytes()

    def test_other_programs_read_it_by_the_paths_of_the_tree(self, checkpoint, tmp_path):
        folder, tree, _ = checkpoint
        consolidate(folder, tmp_path / "one.safetensors")
        found = safetensors.torch.load_file(tmp_path / "one.safetensors")
        parameters = dict(fl.trainables(tree["model"], paths=True))
        assert len(parameters) == 10
        assert all(torch.equal(found[f"['model']{path}"], x) for path, x in parameters.items())

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
