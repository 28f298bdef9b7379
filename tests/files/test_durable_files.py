"""Files appear whole and on the disk, what a killed write left is known by its name, and damage is found."""

import errno
import os
import re

import pytest
import safetensors.torch
import torch

import fluxlike as fl
from fluxlike.files import durable
from fluxlike.files.durable import leftovers, write_whole
from fluxlike.files.verify import verify


def accept(path):
    pass


class TestWriteWhole:
    def test_parts_are_written_one_after_another(self, tmp_path):
        write_whole(tmp_path / "f", [b"ab", memoryview(b"cd"), b""], accept)
        assert (tmp_path / "f").read_bytes() == b"abcd"

    def test_file_and_folder_are_on_the_disk_before_and_after_the_rename(self, tmp_path, monkeypatch):
        said = []
        sync, replace = os.fsync, os.replace
        monkeypatch.setattr(
            durable.os, "fsync", lambda f: (said.append(os.path.isdir(f"/dev/fd/{f}")), sync(f))[1]
        )
        monkeypatch.setattr(durable.os, "replace", lambda a, b: (said.append("rename"), replace(a, b))[1])
        write_whole(tmp_path / "f", [b"ab"], accept)
        assert said == [False, "rename", True]

    def test_what_is_refused_is_not_there(self, tmp_path):
        def refuse(path):
            assert path.read_bytes() == b"ab"
            raise ValueError("not right")

        with pytest.raises(ValueError, match="not right"):
            write_whole(tmp_path / "f", [b"ab"], refuse)
        assert os.listdir(tmp_path) == []

    def test_a_pipe_stays_one(self, tmp_path):
        os.mkfifo(tmp_path / "f")
        (tmp_path / "link").symlink_to("f")
        for path in (tmp_path / "f", tmp_path / "link"):
            with pytest.raises(ValueError, match="f is a pipe or a device, which a file would take"):
                write_whole(path, [b"ab"])
            with pytest.raises(ValueError, match=r"can't save to .* is a pipe or a device"):
                fl.save(path, [torch.ones(1)])
        assert (tmp_path / "f").is_fifo()
        assert sorted(os.listdir(tmp_path)) == ["f", "link"]

    def test_a_folder_stays_one(self, tmp_path):
        with pytest.raises(ValueError, match="is a folder"):
            write_whole(tmp_path, [b"ab"])
        assert os.listdir(tmp_path) == []

    def test_parts_may_be_made_while_they_are_written(self, tmp_path):
        write_whole(tmp_path / "f", (bytes([n]) for n in range(3)))
        assert (tmp_path / "f").read_bytes() == b"\0\1\2"

    def test_a_link_stays_one(self, tmp_path):
        (tmp_path / "link").symlink_to("f")
        write_whole(tmp_path / "link", [b"ab"])
        assert (tmp_path / "f").read_bytes() == b"ab"
        assert (tmp_path / "link").is_symlink()

    def test_a_folder_that_can_not_be_synchronised_is_fine(self, tmp_path, monkeypatch):
        sync = os.fsync

        def lacking(file):
            if os.path.isdir(f"/dev/fd/{file}"):
                raise OSError(errno.EINVAL, "Invalid argument")
            sync(file)

        monkeypatch.setattr(durable.os, "fsync", lacking)
        write_whole(tmp_path / "f", [b"ab"], accept)
        assert (tmp_path / "f").read_bytes() == b"ab"

    def test_leftovers_are_known_by_their_names(self, tmp_path, monkeypatch):
        monkeypatch.setattr(durable.os, "unlink", lambda path: None)
        monkeypatch.setattr(durable.os, "replace", lambda a, b: None)
        write_whole(tmp_path / "f1", [b"ab"], accept)
        write_whole(tmp_path / "g", [b"ab"], accept)
        (tmp_path / ".f1.tmp").touch()
        (tmp_path / ".f1.0123456789abcdef.tmp.gz").touch()
        found = leftovers(tmp_path, re.compile(r"f\d"))
        assert [path.name[:4] for path in found] == [".f1."]


def test_of_parts_that_are_made_as_they_are_written_all_are_counted(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "write", full)
    with pytest.raises(OSError, match="it needs 50 bytes"):
        write_whole(tmp_path / "f", (b"12345" for _ in range(10)))


def test_a_full_disk_says_what_is_needed_and_what_is_free(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "f"
    fl.save(file, [torch.ones(1)])
    monkeypatch.setattr(durable.os, "write", full)
    message = r"No space left on device: it needs 4,0\d\d,\d{3} bytes, [\d,]+ are free; .*as it was.*/f"
    with pytest.raises(OSError, match=message) as info:
        fl.save(file, [torch.zeros(1_000_000)])
    assert info.value.errno == errno.ENOSPC
    assert fl.load(file, like=[torch.empty(1)])[0].item() == 1
    assert os.listdir(tmp_path) == ["f"]


class TestMemory:
    def test_what_was_saved_and_what_was_loaded_can_be_donated(self, tmp_path):
        model = fl.Chain(fl.Dense(2, 3), fl.Dense(3, 1))
        fl.save(tmp_path / "f", model)
        for each in (fl.load(tmp_path / "f", like=model), model):
            state = fl.setup(fl.Adam(), each)
            grads = fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), each)
            each, state = fl.update(state, each, grads, donate=True)
            assert each.layers[0].weight.shape == (3, 2)

    def test_other_readers_of_the_format_read_it(self, tmp_path):
        tree = {
            "bool": torch.tensor([True]),
            "wide": torch.ones(2, dtype=torch.float64),
            "none": torch.ones(0),
        }
        tree |= {"half": torch.ones(3, 1, dtype=torch.bfloat16), "scalar": torch.tensor(1j)}
        fl.save(tmp_path / "f", tree)
        read = safetensors.torch.load_file(tmp_path / "f")
        assert {name: x.dtype for name, x in read.items()} == {f"['{k}']": x.dtype for k, x in tree.items()}
        assert all(torch.equal(x, read[f"['{k}']"]) for k, x in tree.items())


class TestVerify:
    def test_a_whole_file_is_fine(self, tmp_path):
        fl.save(tmp_path / "f", {"w": torch.ones(5), "none": torch.ones(0), "n": 1})
        verify(tmp_path / "f")

    @pytest.mark.parametrize("at", [-1, -20, 30, 0])
    def test_a_changed_byte_is_an_error(self, tmp_path, at):
        file = tmp_path / "f"
        fl.save(file, {"w": torch.ones(5)})
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            verify(file)

    def test_a_file_of_others_has_no_checksums(self, tmp_path):
        safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "f")
        with pytest.raises(ValueError, match=r"not one that fluxlike\.save wrote"):
            verify(tmp_path / "f")

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            verify(tmp_path / "f")
