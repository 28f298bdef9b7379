"""Hostile files: thousands of mutants, and files that are no files. Never a crash, a hang or gigabytes."""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from mutated_files import put_together, sealed

import fluxlike as fl
from fluxlike.files import match, reader

WORKER = Path(__file__).with_name("mutated_files.py")
KINDS = ["Saved", "Forged", "Safetensors", "Torch", "Legacy", "Shards"]


class TestMutants:
    """Each is refused with its file's name, or read with the values that were saved."""

    def run(self, kind, count, seed, tmp_path):
        status = tmp_path / "status"
        done = subprocess.run(
            [sys.executable, WORKER, kind, str(count), seed, status],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fl.__file__).parents[1])},
        )
        assert done.returncode == 0, f"died at mutant {status.read_text()}: {done.stderr[-2000:]}"
        result = json.loads(done.stdout)
        assert result["wrong"] == []
        assert result["refused"] + result["read"] == count
        assert min(result["refused"], result["read"]) > 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_mutant_is_refused_or_harmless(self, kind, tmp_path):
        self.run(kind, 500, "quick", tmp_path)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_four_times_as_many(self, kind, tmp_path):
        self.run(kind, 2000, "slow", tmp_path)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class TestHeaders:
    """Eight bytes of data under a header that lies about them."""

    @pytest.mark.parametrize(
        ("header", "text"),
        [
            ({"w": entry(offsets=(0, 16), shape=(4,))}, "describes 16 bytes of data, it holds 8"),
            ({"w": entry(offsets=(0, 4), shape=(1,))}, "describes 4 bytes of data, it holds 8"),
            ({"w": entry(offsets=(4, 12))}, "'w' starts at byte 4 of the data, not at 0"),
            ({"v": entry(), "w": entry()}, "'w' starts at byte 0 of the data, not at 8"),
            ({"w": entry(offsets=(8, 0))}, "has the offsets"),
            ({"w": entry(offsets=(-8, 0))}, "has the shape"),
            ({"w": entry(offsets=(0, 2**64))}, "has the shape"),
            ({"w": entry(offsets=(0,))}, "has the shape"),
            ({"w": entry(offsets=(0.0, 8.0))}, "has the shape"),
            ({"w": entry(shape=(3,))}, "has the offsets"),
            ({"w": entry(shape=(-2,))}, "has the shape"),
            ({"w": entry(shape=(True, 2))}, "has the shape"),
            ({"w": entry(shape=(2**32, 2**32))}, "has the offsets"),
            ({"w": entry(), "e": entry(shape=(0, 2**62, 2**62), offsets=(8, 8))}, "has the offsets"),
            ({"w": entry(shape=(1,) * 65 + (2,))}, "has the shape"),
            ({"w": entry(dtype="F64")}, "has the offsets"),
            ({"w": entry(dtype="F33")}, "has the dtype 'F33', which is not known"),
            ({"w": entry(dtype=["F32"])}, "which is not known"),
            ({"w": 5}, "'w' has no dtype, shape and data_offsets"),
            ({"w": entry(), "__metadata__": {"a": 1}}, "its metadata are not texts"),
            ({"w": entry(), "__metadata__": []}, "its metadata are not texts"),
            ("[]", "no JSON object"),
            ('{"w": NaN}', "NaN is no JSON"),
            ('{"w": 1, "w": 2}', "the key 'w' stands there twice"),
            ('{"w": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
            ('{"w": ' + "9" * 10_000 + "}", "Exceeds the limit"),
            ('{"w"', "Expecting ':'"),
            ("", "no JSON object"),
        ],
        ids=range(28),
    )
    def test_a_header_that_lies_is_an_error(self, tmp_path, header, text):
        file = tmp_path / "w.safetensors"
        raw = (header if isinstance(header, str) else json.dumps(header)).encode()
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
        with pytest.raises(ValueError, match=rf"w\.safetensors is damaged.*{re.escape(text)}"):
            fl.read_checkpoint(file)

    def test_bytes_that_are_no_bools_are_an_error(self, tmp_path):
        file = tmp_path / "w.safetensors"
        raw = json.dumps({"w": entry("BOOL", (8,))}).encode()
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\x00\x01\x02" + bytes(5))
        with pytest.raises(ValueError, match="'w' holds bytes that are no bools"):
            fl.read_checkpoint(file)

    def test_a_flipped_bit_of_a_value_is_an_error(self, tmp_path):
        file = tmp_path / "w.safetensors"
        fl.save(file, {"w": torch.ones(2)})
        file.write_bytes(file.read_bytes()[:-1] + b"\x3e")
        with pytest.raises(ValueError, match=r"the checksum of .* does not agree with its values"):
            fl.load(file, like={"w": torch.zeros(2)})

    def test_a_changed_number_of_the_header_is_an_error(self, tmp_path):
        file = tmp_path / "w.safetensors"
        fl.save(file, {"w": torch.ones(2), "epoch": 12})
        file.write_bytes(file.read_bytes().replace(b'value\\": 12', b'value\\": 13'))
        with pytest.raises(ValueError, match="its checksum does not agree with it"):
            fl.load(file, like={"w": torch.zeros(2), "epoch": 0})


LOADERS = {
    "load": lambda file: fl.load(file, like={"w": torch.zeros(2)}),
    "checkpoint": lambda file: fl.load_checkpoint(file, {"w": torch.zeros(2)}),
    "read": fl.read_checkpoint,
}


@pytest.fixture(params=LOADERS, ids=str)
def read(request):
    return LOADERS[request.param]


class TestNoFiles:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".index.json"])
    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path, suffix):
        pipe = tmp_path / f"pipe{suffix}"
        os.mkfifo(pipe)
        with pytest.raises(ValueError, match=r"pipe\S* is a pipe or a device"):
            fl.read_checkpoint(pipe)

    def test_load_refuses_a_pipe_and_a_device(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(ValueError, match=f"{path} is a pipe or a device"):
                fl.load(path, like=[])

    def test_a_device_behind_a_link_is_refused(self, tmp_path, read):
        link = tmp_path / "endless.safetensors"
        link.symlink_to("/dev/zero")
        with pytest.raises(ValueError, match=r"endless\.safetensors is a pipe or a device"):
            read(link)

    def test_a_folder_is_refused(self, tmp_path, read):
        with pytest.raises(ValueError, match=tmp_path.name):
            read(tmp_path)

    def test_an_empty_file_is_refused(self, tmp_path, read):
        file = tmp_path / "empty.safetensors"
        file.touch()
        with pytest.raises(ValueError, match=r"empty\.safetensors is damaged.*it has 0 bytes"):
            read(file)

    @pytest.mark.parametrize("suffix", [".pt", ".index.json"])
    def test_an_empty_file_of_another_kind_is_refused(self, tmp_path, suffix):
        file = tmp_path / f"empty{suffix}"
        file.touch()
        with pytest.raises(ValueError, match=f"empty{suffix}"):
            fl.read_checkpoint(file)

    def test_a_file_that_is_not_there_is_named(self, tmp_path, read):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.safetensors"):
            read(tmp_path / "nowhere.safetensors")

    def test_a_link_that_leads_nowhere_is_named(self, tmp_path, read):
        link = tmp_path / "link.safetensors"
        link.symlink_to(tmp_path / "gone")
        with pytest.raises(FileNotFoundError, match=r"link\.safetensors"):
            read(link)

    def test_a_link_to_a_file_is_followed(self, tmp_path):
        fl.save(tmp_path / "file", {"w": torch.ones(2)})
        link = tmp_path / "link.safetensors"
        link.symlink_to(tmp_path / "file")
        assert fl.load(link, like={"w": torch.zeros(2)})["w"].tolist() == [1, 1]
        assert fl.load_checkpoint(link, {"w": torch.zeros(2)})["w"].tolist() == [1, 1]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read_is_named(self, tmp_path, read):
        file = tmp_path / "secret.safetensors"
        file.touch(mode=0)
        with pytest.raises(PermissionError, match=r"secret\.safetensors"):
            read(file)

    def test_a_number_is_no_path(self, read):
        with pytest.raises(TypeError, match="found a int"):
            read(0)


def shrinking(monkeypatch, file, size):
    """From the second read of tensor bytes on, the file has `size` bytes."""
    original, reads = reader.TensorFile._fill, []

    def fill(self, chunk):
        reads.append(1)
        if len(reads) == 3:  # the length, the header, and now the data
            os.truncate(file, size)
        original(self, chunk)

    monkeypatch.setattr(reader.TensorFile, "_fill", fill)


class TestWhileItIsRead:
    def test_a_file_that_shrinks_is_an_error(self, tmp_path, monkeypatch):
        file, like = tmp_path / "f.safetensors", {"w": torch.zeros(1_000_000)}
        fl.save(file, {"w": torch.ones(1_000_000)})
        shrinking(monkeypatch, file, 5000)
        with pytest.raises(ValueError, match=r"f\.safetensors is damaged.*it ended while it was read"):
            fl.load(file, like=like)
        assert not like["w"].any()

    def test_what_was_read_does_not_depend_on_the_file(self, tmp_path):
        file = tmp_path / "f.pt"
        torch.save({"w": torch.ones(100_000)}, file)
        found = fl.read_checkpoint(file)
        os.truncate(file, 10)
        assert found["w"].eq(1).all()

    def test_a_shard_that_is_replaced_is_an_error(self, tmp_path, monkeypatch):
        file = tmp_path / "f.safetensors"
        safetensors.torch.save_file({"w": torch.ones(2)}, file)
        original = match.Match.filled

        def filled(self):
            safetensors.torch.save_file({"v": torch.ones(2), "w": torch.zeros(2)}, file)
            return original(self)

        monkeypatch.setattr(match.Match, "filled", filled)
        with pytest.raises(ValueError, match=r"f\.safetensors was changed while it was read"):
            fl.load_checkpoint(file, {"w": torch.zeros(2)})


def sparse(file, shape, count):
    """A file of that many float32 entries, none of them on the disk."""
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * count]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(file, 8 + len(header) + 4 * count)


class TestSizes:
    def test_a_tensor_that_does_not_fit_is_not_read(self, tmp_path):
        file = tmp_path / "huge.safetensors"
        sparse(file, [2**36], 2**36)  # 256 GiB
        with pytest.raises(
            ValueError, match=r"\['w'\] is \(68719476736,\) in the checkpoint, \(2,\) in the model"
        ):
            fl.load_checkpoint(file, {"w": torch.zeros(2)})

    @pytest.mark.parametrize("kind", ["tensor", "array"])
    def test_load_does_not_read_it_either(self, tmp_path, kind):
        file = tmp_path / "huge.safetensors"
        about = {
            "version": 2,
            "leaves": {"['w']": {kind: "w"}},
            "nodes": {"": {"class": "dict", "settings": {}}},
            "checksums": {"w": 0},
        }
        entry = {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}
        header = json.dumps({"w": entry, "__metadata__": {"fluxlike": sealed(about)}}).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header)
        os.truncate(file, 8 + len(header) + 2**38)
        like = torch.zeros(2) if kind == "tensor" else np.zeros(2, np.float32)
        with pytest.raises(ValueError, match=r"\['w'\] has the shape \(68719476736,\), the model has \(2,\)"):
            fl.load(file, like={"w": like})

    def test_a_tensor_larger_than_memory_is_an_error(self, tmp_path):
        file = tmp_path / "huge.safetensors"
        sparse(file, [2**41], 2**41)  # 8 TiB
        with pytest.raises(MemoryError, match=r"'w' of \S*huge\.safetensors takes 8796093022208 bytes"):
            fl.read_checkpoint(file)

    def test_a_header_beyond_the_limit_is_not_read(self, tmp_path):
        file = tmp_path / "header.safetensors"
        file.write_bytes(struct.pack("<Q", 10**11))
        os.truncate(file, 10**11 + 100)
        with pytest.raises(ValueError, match="its header would take 100000000000 of"):
            fl.read_checkpoint(file)

    def test_a_header_of_too_many_values_is_not_parsed(self, tmp_path):
        file = tmp_path / "header.safetensors"
        text = b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(ValueError, match="it describes more than 5000000 values"):
            fl.read_checkpoint(file)

    def test_a_path_of_a_million_steps_is_soon_refused(self, tmp_path):
        file = tmp_path / "deep.safetensors"
        leaves = {"[0]" * 1_000_000: {"value": 1}, "[0]" * 999_999: {"value": 1}}
        nodes = {"[0]" * n: {"class": "list", "settings": {}} for n in (900_000, 5)}
        about = sealed({"version": 2, "leaves": leaves, "nodes": nodes, "checksums": {}})
        file.write_bytes(put_together(json.dumps({"__metadata__": {"fluxlike": about}}), b""))
        with pytest.raises(ValueError, match="does not fit the model"):
            fl.load(file, like=[1])

    def test_a_compressed_archive_is_refused(self, tmp_path):
        file, bomb = tmp_path / "f.pt", tmp_path / "bomb.pt"
        torch.save({"w": torch.zeros(2_000_000)}, file)
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert bomb.stat().st_size < 100_000
        with pytest.raises(ValueError, match=r"bomb\.pt is damaged.*its records are compressed"):
            fl.read_checkpoint(bomb)

    @pytest.mark.parametrize("shape", ["cycle", "branches"])
    def test_dicts_that_unfold_without_end_are_refused(self, tmp_path, shape):
        file, tree = tmp_path / "f.pt", {"w": torch.ones(1)}
        if shape == "cycle":
            tree["again"] = tree
        else:
            for _ in range(60):
                tree = {"a": tree, "b": tree}
        torch.save(tree, file)
        with pytest.raises(ValueError, match="too many dicts, or a dict that holds itself"):
            fl.read_checkpoint(file)

    def test_reading_takes_the_memory_of_the_tensors_once(self, tmp_path):
        file = tmp_path / "f.safetensors"
        code = (
            "import re, sys, torch, fluxlike as fl\n"
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
            "like = {'w': torch.zeros(10, 2_000_000, device='meta')}\n"
            "fl.load(sys.argv[1] + '.small', like=[torch.zeros(2)]); before = peak()\n"
            "fl.load(sys.argv[1], like=like); print(peak() - before)"
        )
        fl.save(file, {"w": torch.randn(10, 2_000_000)})
        fl.save(f"{file}.small", [torch.ones(2)])
        done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
        assert 0.9 < int(done.stdout) * 1024 / 80_000_000 < 1.1
