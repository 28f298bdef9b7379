"""A sharded checkpoint is loaded and saved whole or not at all: misfits, damage, and saves that die."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zlib

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.distributed.checkpoints import consolidate, load, save
from fluxlike.files import durable
from tests.distributed.ranks import RankError, run
from tests.distributed.sharded_trees import (
    error_of,
    far,
    files,
    loaded,
    on_mesh,
    perceptron,
    run_of,
    same_bits,
    saved,
)

pytestmark = pytest.mark.slow  # processes take a while to start and to meet


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
                # A file of `save` has parts besides, which a checkpoint over a mesh is not loaded by.
                differences = wanted.partition("model:")[2].partition("the parts of the file")[0].rstrip()
                assert text.partition("model:")[2] == differences != ""

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
        except ValueError:
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
        with pytest.raises(ValueError, match=f"is damaged: there is no file {file.name}, which .* names"):
            load(copied, like=run_of(perceptron()))
        texts = run(misread, 2, copied)  # not what a run takes as a reason to begin anew, on no rank
        assert all(text.startswith("ValueError") and file.name in text for text in texts)

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
