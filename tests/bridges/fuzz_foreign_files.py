"""Reads mutants of one file: ``python fuzz_foreign_files.py file number``. Each is an error, or values.

It runs in a process of its own, since what is tested is that the process lives, and how much memory it took.
"""

import contextlib
import random
import resource
import struct
import sys
from pathlib import Path

from jld2_writer import lookup3

import fluxlike as fl

READ = {".jld2": fl.read_flux, ".h5": fl.read_keras, ".keras": fl.read_keras}


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


def with_checksums(x):
    """The headers of a JLD2 file with the checksums that they should have, so that all else is looked at."""
    at = 0
    while (at := x.find(b"OHDR", at)) >= 0:
        width = 1 << (x[at + 5] & 3) if at + 5 < len(x) else 1
        end = at + 6 + width + int.from_bytes(x[at + 6 : at + 6 + width], "little")
        if end + 4 <= len(x):
            x[end : end + 4] = struct.pack("<I", lookup3(bytes(x[at:end])))
        at += 4
    x[556:560] = struct.pack("<I", lookup3(bytes(x[512:556])))
    return x


def main(file, number):
    path = Path(file)
    content, read = path.read_bytes(), READ.get(path.suffix, fl.read_flax)
    read(path)
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for seed in range(number):
        x = mutant(content, seed)
        path.write_bytes(with_checksums(x) if path.suffix == ".jld2" and seed % 4 else x)
        with contextlib.suppress(ValueError):
            read(path)
            refused -= 1
        refused += 1
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(refused, used)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
