"""Checkpoints that torch wrote, as its users have them: what may be missing, and what is no checkpoint."""

import io
import json
import pickle
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

import fluxlike as fl
from fluxlike.trees import records


@fl.functor(buffers=("running_mean", "num_batches_tracked", "positions"))
class Norm:
    def __init__(self, device=None):
        self.running_mean = torch.zeros(2, device=device)
        self.num_batches_tracked = torch.tensor(7, device=device)
        self.positions = torch.arange(4.0, device=device)


@pytest.fixture
def lacking(monkeypatch):
    """Checkpoints may leave out a Norm's positions."""
    monkeypatch.setattr(records, "_lacking", {Norm: lambda node: {"positions"}})


MEAN = {"norm.running_mean": torch.ones(2)}
COUNT = {"norm.num_batches_tracked": torch.tensor(1)}


class TestWhatMayBeMissing:
    def test_a_buffer_that_is_not_persistent_keeps_the_model_s_values(self, lacking):
        model = {"norm": Norm()}
        loaded = fl.load_checkpoint({**MEAN, **COUNT}, model)
        assert loaded["norm"].positions is model["norm"].positions
        assert fl.match_checkpoint({**MEAN, **COUNT}, model).kept == ("['norm'].positions",)

    def test_it_is_loaded_where_it_is_there(self, lacking):
        found = {**MEAN, **COUNT, "norm.positions": torch.ones(4)}
        assert fl.load_checkpoint(found, {"norm": Norm()})["norm"].positions.eq(1).all()

    def test_without_a_word_of_its_class_it_is_missing(self):
        with pytest.raises(ValueError, match=r"\['norm'\]\.positions is missing"):
            fl.load_checkpoint({**MEAN, **COUNT}, {"norm": Norm()})

    def test_on_the_meta_device_it_has_no_values_and_is_missing(self, lacking):
        with pytest.raises(ValueError, match=r"\['norm'\]\.positions is missing"):
            fl.load_checkpoint({**MEAN, **COUNT}, {"norm": Norm("meta")})

    def test_a_tie_to_a_place_that_may_not_be_missing_is_missing(self, lacking):
        norm = Norm()
        with pytest.raises(ValueError, match=r"positions is missing"):
            fl.load_checkpoint({**MEAN, **COUNT}, {"norm": norm, "other": norm.positions})

    def test_a_count_of_batches_is_kept_as_torch_keeps_it(self, lacking):
        report = fl.match_checkpoint(MEAN, {"norm": Norm()})
        assert report.missing == ()
        assert report.model["norm"].num_batches_tracked.item() == 7

    def test_a_count_of_batches_on_the_meta_device_is_zero(self):
        like = {"norm": {"running_mean": torch.zeros(2), "num_batches_tracked": torch.tensor(7)}}
        loaded = fl.load_checkpoint(MEAN, fl.to_device(like, "meta"))
        assert (
            loaded["norm"]["num_batches_tracked"].device.type,
            loaded["norm"]["num_batches_tracked"].item(),
        ) == (
            "cpu",
            0,
        )

    def test_a_count_without_its_statistics_is_missing(self):
        like = {"norm": {"running_mean": torch.zeros(3), "num_batches_tracked": torch.tensor(7)}}
        assert "['norm']['num_batches_tracked']" in fl.match_checkpoint(MEAN, like).missing

    def test_a_class_says_once_what_may_be_missing(self, lacking):
        with pytest.raises(ValueError, match=r"may_lack\(.*Norm\): it was said already, .*; say it once"):
            records.may_lack(Norm, lambda node: ())


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 1)


class TestWhatIsNoCheckpoint:
    def refused(self, path, text):
        with pytest.raises(ValueError, match=text) as error:
            fl.read_checkpoint(path)
        assert str(path) in str(error.value)
        assert "\x1b" not in str(error.value)

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
    def test_a_whole_module_is_told_how_to_give_its_tensors(self, tmp_path, zipped):
        torch.save(Net(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
        self.refused(
            tmp_path / "whole.pt", r"a test_torch_checkpoints\.Net; .*weights_only=False\)\.state_dict\(\)"
        )

    def test_torchscript_is_told_how_to_give_its_tensors(self, tmp_path):
        buffer = io.BytesIO()
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
        (tmp_path / "script.pt").write_bytes(buffer.getvalue())
        self.refused(tmp_path / "script.pt", r"TorchScript; give torch\.jit\.load\(path\)\.state_dict\(\)")

    @pytest.mark.parametrize(
        "raw", [b"junk", b"", pickle.dumps({"w": 1}), b"\x1f\x8b" + bytes(40)], ids=range(4)
    )
    def test_junk_is_called_so(self, tmp_path, raw):
        (tmp_path / "f.pt").write_bytes(raw)
        self.refused(tmp_path / "f.pt", "it does not start as torch.save starts a file")

    def test_an_archive_of_another_program_is_called_so(self, tmp_path):
        np.savez(tmp_path / "f.npz", w=np.ones(2))
        self.refused(tmp_path / "f.npz", "it is an archive that torch.save did not write")

    def test_a_file_of_keras_is_sent_to_its_reader(self, tmp_path):
        with h5py.File(tmp_path / "f.weights.h5", "w") as file:
            file["w"] = np.ones(2)
        self.refused(tmp_path / "f.weights.h5", "an HDF5 file by its first bytes; load_keras")

    def test_load_sends_a_file_of_torch_to_load_checkpoint(self, tmp_path):
        for zipped in (True, False):
            torch.save({"w": torch.ones(2)}, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
            with pytest.raises(
                ValueError, match=r"f\.pt is a file of torch\.save.*fluxlike\.load_checkpoint"
            ):
                fl.load(tmp_path / "f.pt", like={"w": torch.ones(2)})

    def test_a_class_in_place_of_a_model_is_an_error(self, tmp_path):
        fl.save(tmp_path / "f", {"w": torch.ones(1)})
        for load in (
            lambda like: fl.load_checkpoint({"w": torch.ones(1)}, like),
            lambda like: fl.match_checkpoint({"w": torch.ones(1)}, like),
            lambda like: fl.load(tmp_path / "f", like=like),
        ):
            with pytest.raises(
                TypeError, match=r"like is the class Norm; give a model of it, Norm\(\.\.\.\)"
            ):
                load(Norm)
            with pytest.raises(TypeError, match=r"a Net; give fluxlike\.from_torch\(module\)"):
                load(Net())

    def test_a_state_dict_of_torch_is_sent_to_load_checkpoint(self):
        model = fl.Chain(fl.Dense(2, 1))
        with pytest.raises(ValueError, match=r"such a dict is read by fluxlike\.load_checkpoint\(d, model\)"):
            fl.load_state_dict(model, {"layers.0.weight": torch.ones(1, 2), "layers.0.bias": torch.ones(1)})


class TestFirstBytes:
    """They say what a file is; its name must not say otherwise."""

    @pytest.mark.parametrize("name", ["m.pth.tar", "m", "m.model", "m.SAFETENSORS"])
    @pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
    def test_a_file_of_any_ending_is_read(self, tmp_path, name, kind):
        tensors = {"w": torch.ones(2)}
        if kind == "safetensors":
            safetensors.torch.save_file(tensors, tmp_path / name)
        else:
            torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=kind == "torch")
        assert fl.read_checkpoint(tmp_path / name)["w"].tolist() == [1, 1]

    def test_a_file_of_torch_called_safetensors_is_an_error(self, tmp_path):
        torch.save({"w": torch.ones(2)}, tmp_path / "w.safetensors")
        with pytest.raises(
            ValueError, match=r"safetensors file by its name, and a file of torch\.save by its first"
        ):
            fl.read_checkpoint(tmp_path / "w.safetensors")

    def test_a_safetensors_file_called_bin_is_an_error(self, tmp_path):
        safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "w.bin")
        with pytest.raises(
            ValueError, match=r"file of torch\.save by its name, and a safetensors file by its first"
        ):
            fl.read_checkpoint(tmp_path / "w.bin")

    def test_in_a_folder_the_single_file_comes_before_the_index(self, tmp_path):
        safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "old.safetensors"}}')
        assert fl.read_checkpoint(tmp_path)["w"].tolist() == [1, 1]


class TestWhatIsNoTensor:
    def test_what_is_dropped_may_be_no_tensor(self, tmp_path):
        found = {"w": torch.ones(1), "_extra_state": None, "opt": {"lr": 0.1, "names": ["a"]}}
        torch.save(found, tmp_path / "f.pt")
        for source in (found, tmp_path / "f.pt"):
            rename = {"_extra_state": None, "opt": None}
            report = fl.match_checkpoint(source, {"w": torch.zeros(1)}, rename=rename)
            assert report.dropped == ("_extra_state", "opt.lr", "opt.names")
            assert report.model["w"].item() == 1

    def test_what_is_not_dropped_is_named_with_the_rule_that_drops_it(self):
        found = {"w": torch.ones(1), "_extra_state": None}
        with pytest.raises(
            ValueError,
            match=r"a NoneType at '_extra_state', no tensor; leave it .* rename=\{'_extra_state': None\}",
        ):
            fl.load_checkpoint(found, {"w": torch.zeros(1)})

    def test_an_array_is_told_how_to_become_a_tensor(self):
        with pytest.raises(ValueError, match=r"a ndarray at 'w', no tensor; convert it by torch\.from_numpy"):
            fl.load_checkpoint({"w": np.ones(1, np.float32)}, {"w": torch.zeros(1)})

    def test_braces_in_the_name_of_a_part_are_printed(self):
        with pytest.raises(ValueError, match=r"part='\{0\}\{x\}'"):
            fl.load_checkpoint({"epoch": 1, "{0}{x}": {"w": torch.ones(1)}}, {"w": torch.zeros(1)})


class TestMemory:
    def test_an_expanded_tensor_far_larger_than_its_file_is_refused(self, tmp_path):
        torch.save({"w": torch.ones(1).expand(1 << 28)}, tmp_path / "bomb.pt")
        assert (tmp_path / "bomb.pt").stat().st_size < 5000
        with pytest.raises(
            ValueError, match=r"bomb\.pt has \d+ bytes, and its tensors would take 1073741824"
        ):
            fl.read_checkpoint(tmp_path / "bomb.pt")

    def test_one_memory_under_very_many_names_is_refused(self, tmp_path):
        w = torch.ones(250_000)
        torch.save({f"{i}": w for i in range(1000)}, tmp_path / "bomb.pt")
        with pytest.raises(ValueError, match="they repeat one memory"):
            fl.read_checkpoint(tmp_path / "bomb.pt")

    def test_ties_and_small_expanded_tensors_are_read(self, tmp_path):
        w = torch.randn(100)
        torch.save({"a": w, "b": w, "mask": torch.ones(1).expand(1000, 1000)}, tmp_path / "f.pt")
        assert fl.read_checkpoint(tmp_path / "f.pt")["mask"].shape == (1000, 1000)

    def peak(self, code, file):
        """The memory that code takes at its peak over what stands before, in bytes."""
        start = (
            "import re, sys, torch, fluxlike as fl\n"
            "status = lambda: open('/proc/self/status').read()\n"
            "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status())[1])\n"
            "fl.load_checkpoint(sys.argv[1] + '.small', {'w': torch.zeros(2)}, cast=True)\n"
            "before = peak()\n"
        )
        torch.save({"w": torch.ones(2).double()}, f"{file}.small")
        done = subprocess.run(
            [sys.executable, "-c", f"{start}{code}\nprint(peak() - before)", file],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    def test_shards_of_torch_are_in_memory_one_at_a_time(self, tmp_path):
        names = [f"{i}" for i in range(4)]
        for name in names:
            torch.save({name: torch.ones(10_000_000)}, tmp_path / f"{name}.bin")
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": {name: f"{name}.bin" for name in names}}))
        code = (
            "try: fl.load_checkpoint(sys.argv[1], {})\n"
            "except ValueError as error: assert \"'0' of the checkpoint has no place\" in str(error)"
        )
        assert self.peak(code, index) < 1.3 * 40_000_000

    def test_what_is_converted_does_not_stay(self, tmp_path):
        torch.save({f"{i}": torch.ones(5_000_000).double() for i in range(8)}, tmp_path / "f.pt")
        code = (
            "like = {f'{i}': torch.empty(5_000_000, device='meta', dtype=torch.float16) for i in range(8)}\n"
            "model = fl.load_checkpoint(sys.argv[1], like, cast=True)\n"
            "assert all(x.eq(1).all() for x in model.values())"
        )
        # 320 MB in the file, 80 MB in the model; converting one takes some more.
        assert self.peak(code, tmp_path / "f.pt") < 1.17 * 320_000_000

    def test_a_shard_that_is_replaced_is_an_error(self, tmp_path, monkeypatch):
        from fluxlike.files import match

        file = tmp_path / "w.bin"
        torch.save({"w": torch.ones(2)}, file)
        (tmp_path / "f.index.json").write_text('{"weight_map": {"w": "w.bin"}}')
        original = match.Match.filled

        def filled(self):
            torch.save({"w": torch.zeros(200)}, file)
            return original(self)

        monkeypatch.setattr(match.Match, "filled", filled)
        with pytest.raises(ValueError, match=r"w\.bin was changed while it was read"):
            fl.load_checkpoint(tmp_path / "f.index.json", {"w": torch.zeros(2)})


def test_compressed_records_are_still_refused(tmp_path):
    torch.save({"w": torch.zeros(100)}, tmp_path / "f.pt")
    with (
        zipfile.ZipFile(tmp_path / "f.pt") as old,
        zipfile.ZipFile(tmp_path / "g.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="its records are compressed"):
        fl.read_checkpoint(tmp_path / "g.pt")


class TestNamesOfAChain:
    """Layers that were given names may be called by them, as torch calls them."""

    def chain(self):
        return fl.Chain(body=fl.Chain(fc1=fl.Dense(3, 4), bn=fl.BatchNorm(4)), fc2=fl.Dense(4, 2))

    def theirs(self, tree):
        found = dict(fl.to_torch(tree).state_dict())
        names = {f"layers.0.layers.{i}.": f"body.{n}." for i, n in enumerate(("fc1", "bn"))}
        return {_swap(name, names | {"layers.1.": "fc2."}): x for name, x in found.items()}

    def test_they_are_found_under_their_names(self):
        tree = self.chain()
        found = self.theirs(tree)
        assert {"body.fc1.weight", "body.bn.running_mean", "fc2.bias"} <= found.keys()
        assert fl.tree.allclose(fl.load_checkpoint(found, self.chain()), tree)

    def test_a_name_that_rename_gives_may_be_theirs(self):
        tree = self.chain()
        found = {f"module.{name}": x for name, x in self.theirs(tree).items()}
        assert fl.tree.allclose(fl.load_checkpoint(found, self.chain(), rename={"module": ""}), tree)

    def test_beside_the_numbered_place_a_name_has_no_place(self):
        found = dict(fl.to_torch(self.chain()).state_dict())
        found["fc2.weight"] = torch.ones(2, 4)
        with pytest.raises(ValueError, match=r"'fc2\.weight' of the checkpoint has no place"):
            fl.load_checkpoint(found, self.chain())

    def test_the_numbers_of_a_sequential_are_all_mapped_by_the_hint(self):
        theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        hint = r"map names by rename=\{'0': 'layers\.0', '2': 'layers\.1'\}"
        with pytest.raises(ValueError, match=hint):
            fl.load_checkpoint(theirs.state_dict(), fl.Chain(fl.Dense(3, 4, fl.relu), fl.Dense(4, 2)))


def _swap(name, starts):
    return next(new + name.removeprefix(old) for old, new in starts.items() if name.startswith(old))


def test_what_save_wrote_under_a_name_of_torch_is_read(tmp_path):
    model = fl.Dense(2, 1)
    fl.save(tmp_path / "a.pt", model)
    assert fl.tree.allclose(fl.load_checkpoint(tmp_path / "a.pt", fl.Dense(2, 1)), model)
