"""Reads and loads mutants of one file: ``python fuzz_foreign_files.py file arguments number first_seed``.

Each is an error, or values that stand in the file. It runs in a process of its own, since what is tested is
that the process lives, goes on, and takes little memory. `arguments` is a dict in Python of what loads it.
"""

import contextlib
import faulthandler
import io
import random
import re
import resource
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import torch
from jld2_writer import lookup3

import fluxlike as fl

READ = {".jld2": fl.read_flux, ".h5": fl.read_keras, ".keras": fl.read_keras}
LOAD = {".jld2": fl.load_flux, ".h5": fl.load_keras, ".keras": fl.load_keras}
SECONDS = 30  # for one mutant; the library of HDF5 hears no signal


def mutant(content, seed):
    """A file with a few bytes changed, copied, cut out, or set to a large number."""
    rng, x = random.Random(seed), bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at, how = rng.randrange(len(x)), rng.random()
        if how < 0.5:
            x[at] = rng.randrange(256)
        elif how < 0.8:
            large = rng.choice([0, 1, 2**63, 2**64 - 1, 2**32 - 1, 2**40, rng.randrange(len(x))])
            x[at : at + 8] = struct.pack("<Q", large)[: len(x) - at]
        elif how < 0.9:
            other = rng.randrange(len(x))
            x[at : at + 16] = x[other : other + 16]
        else:
            del x[at : at + rng.randrange(1, 50)]
    return x[: rng.randrange(len(x))] if rng.random() < 0.05 else x


class Restructured:
    """Mutants of a JLD2 file in which what points at one thing points at another."""

    def __init__(self, content):
        self.content = content
        self.places = [found.start() - 512 for found in re.finditer(b"OHDR|OCHK|GCOL", content)]
        known = set(self.places)
        words = ((at, content[at : at + 8]) for at in range(512, len(content) - 8))
        self.pointers = [at for at, word in words if int.from_bytes(word, "little") in known]

    def mutant(self, seed):
        rng, x = random.Random(seed), bytearray(self.content)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.choice(self.pointers)
            if rng.random() < 0.7:
                x[at : at + 8] = struct.pack("<Q", rng.choice(self.places) + rng.choice([0, 0, 0, 8, 16]))
            else:  # the length in front, the index or the length behind
                where = rng.choice([at - 4, at + 8])
                x[where : where + 4] = struct.pack("<I", rng.choice([0, 1, 2, 30, 4000, 2**31]))
        return x


def with_checksums(x):
    """A JLD2 file with the checksums that its headers should have, so that all else is looked at."""
    at = 0
    while (at := x.find(b"OHDR", at)) >= 0:
        width = 1 << (x[at + 5] & 3) if at + 5 < len(x) else 1
        end = at + 6 + width + int.from_bytes(x[at + 6 : at + 6 + width], "little")
        if end + 4 <= len(x):
            for start, length in continuations(x, at + 6 + width, end):
                x[start + length - 4 : start + length] = checksum(x[start : start + length - 4])
            x[end : end + 4] = checksum(x[at:end])
        at += 4
    x[556:560] = checksum(x[512:556])
    return x


def continuations(x, at, end):
    """Where the headers go on of which the messages stand between two places."""
    seen, left = set(), [(at, end)]
    while left:
        at, end = left.pop()
        while at + 4 <= end:
            kind, n = x[at], int.from_bytes(x[at + 1 : at + 3], "little")
            if kind == 16 and n >= 16:
                start, length = struct.unpack("<QQ", x[at + 4 : at + 20].ljust(16, b"\0"))
                chunk = start + 512, length
                if x[chunk[0] : chunk[0] + 4] == b"OCHK" and sum(chunk) <= len(x) and chunk not in seen:
                    seen.add(chunk)
                    left.append((chunk[0] + 4, sum(chunk) - 4))
                    yield chunk
            at += 4 + n


def checksum(data):
    return struct.pack("<I", lookup3(bytes(data)))


def memory(x):
    """The bytes of an array, in the order in which they lie."""
    return (
        x.contiguous().view(torch.uint8).numpy().tobytes() if isinstance(x, torch.Tensor) else x.tobytes("A")
    )


def require_true(found, content, path):
    """Raise if an array that was read is not what the file says."""
    if path.suffix in (".h5", ".keras"):
        with h5py.File(path if path.suffix == ".h5" else weights_of(path), "r") as file:
            require_as_h5py(found, file)
    elif "chunked" not in path.name:
        for x in arrays(found):
            assert memory(x) in content, x


def weights_of(path):
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read("model.weights.h5"))


def require_as_h5py(found, group):
    for name, x in found.items() if isinstance(found, dict) else ():
        require_as_h5py(x, group[name])
    for i, x in enumerate(found if isinstance(found, list) else ()):
        dataset = group["vars"][str(i)]
        try:
            y = dataset[()]
        except OSError:  # such as a level of compression that is none, which nobody needs to unpack
            assert dataset.chunks
            continue
        assert tuple(x.shape) == y.shape
        assert isinstance(x, torch.Tensor) or x.dtype == y.dtype
        ours, theirs = (np.frombuffer(data, np.uint8) for data in (memory(x), y.tobytes()))
        # Where the index of chunks is damaged, HDF5 finds zeros instead of a chunk that it lists.
        unfound = theirs == 0 if dataset.chunks else False
        assert np.all((ours == theirs) | unfound)


def arrays(found):
    if isinstance(found, (dict, list, tuple)):
        for inner in found.values() if isinstance(found, dict) else found:
            yield from arrays(inner)
    elif isinstance(found, (torch.Tensor, np.ndarray)) and found.dtype != bool:
        yield found


def main(file, arguments, number, first):
    path = Path(file)
    content, read = path.read_bytes(), READ.get(path.suffix, fl.read_flax)
    load, arguments = LOAD.get(path.suffix, fl.load_flax), eval(arguments)
    require_true(read(path), content, path)
    load(path, **arguments)
    restructured = Restructured(content) if path.suffix == ".jld2" else None
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for seed in range(first, first + number):
        x = restructured.mutant(seed) if restructured and seed % 2 else mutant(content, seed)
        x = with_checksums(x) if restructured and seed % 4 else x
        path.write_bytes(x)
        print(seed, file=sys.stderr)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            found = read(path)
        except ValueError:
            refused += 1
            continue
        require_true(found, bytes(x), path)
        with contextlib.suppress(ValueError):
            load(path, **arguments)
    faulthandler.cancel_dump_traceback_later()
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(refused, used)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
