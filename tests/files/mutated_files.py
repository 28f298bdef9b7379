"""Mutants of files, read in a process of their own: ``python mutated_files.py KIND COUNT SEED STATUS``.

The process may take 256 MiB, and ten seconds of the processor a mutant. It prints, as JSON, how many mutants
were refused and how many were read, and what is wrong. The number of the mutant at work stands in STATUS, for
when it dies.
"""

import io
import json
import random
import resource
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import optree
import safetensors.torch
import torch

import fluxlike as fl

NUMBERS = [-1, 0, 1, 2, 3, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30]
HOSTILE = [
    None, True, False, *NUMBERS, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**4000, "", "0", "F32",
    "I64", "BOOL", "F64", "tensor", "complex128", "\x00", "\ud800", "../../etc/passwd", "/dev/zero",
    "x" * 10_000, [], {}, [[]], [0], [1, 2], {"": ""}, {"tensor": "tree"}, [2**40, 2**40], [0, 2**62],
    [-1, -1], [1] * 100,
]  # fmt: skip


def edited(rng, value):
    """JSON with one random place replaced, removed, renamed, doubled, swapped or nested."""
    value = json.loads(json.dumps(value))
    places = list(walk(value))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        node, key = rng.choice(places)
        if (isinstance(node, dict) and key not in node) or (isinstance(node, list) and key >= len(node)):
            continue
        other, there = rng.choice(places)
        match rng.randrange(7):
            case 0 | 1:
                node[key] = rng.choice(HOSTILE)
            case 2:
                del node[key]
            case 3 if isinstance(node, dict):
                node[rng.choice([*map(str, HOSTILE[:20]), str(there)])] = node.pop(key)
            case 4 if isinstance(other, dict) and there in other:
                node[key] = json.loads(json.dumps(other[there]))
            case 5:
                node[key] = [node[key]]
            case _:
                if isinstance(node[key], int):
                    node[key] += rng.choice([-8, -1, 1, 4, 8, 2**32, -(2**63)])
    return value


def walk(value):
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(below, (dict, list)):
            yield from walk(below)


def dumped(rng, value):
    """JSON as text, now and then with a key that stands twice, or nested without end."""
    text = json.dumps(value)
    match rng.randrange(20):
        case 0:
            return text.replace(": ", ': 1, "twice": 2, "twice": ', 1)
        case 1:
            i = text.find("}", rng.randrange(len(text)))
            return text[:i] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + text[i:]
        case 2:
            head, _, rest = text[1:].partition(",")
            return "{" + head + "," + head + "," + rest
    return text


def spoiled(rng, raw):
    """Bytes with bits flipped, cut off, cut out, moved, doubled, cleared or put in."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        i, j = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        j = min(j, i + rng.choice([1, 8, 100, 10_000]))
        match rng.randrange(8):
            case 0 | 1:
                if i < len(raw):
                    raw[i] ^= 1 << rng.randrange(8)
            case 2:
                del raw[i:]
            case 3:
                del raw[i:j]
            case 4:
                at = rng.randrange(len(raw) + 1)
                raw[at : at + j - i] = raw[i:j]
            case 5:
                raw[i:i] = raw[i:j]
            case 6:
                raw[i:j] = bytes([rng.choice([0, 0xFF, 0x5B, 0x7B])]) * (j - i)
            case 7:
                raw[i:i] = rng.randbytes(rng.choice([1, 8, 64]))
        if not raw:
            break
    return bytes(raw)


def flipped(rng, raw):
    """Bytes of the same length, a few bits of them flipped."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 2, 8])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def renumbered(rng, text):
    """A text with one of its digits changed."""
    at = rng.choice([i for i, c in enumerate(text) if c.isdigit()])
    return text[:at] + rng.choice("123456789") + text[at + 1 :]


def taken_apart(raw):
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def put_together(text, body, length=None):
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw) if length is None else length % 2**64) + raw + body


def sealed(about):
    """The JSON with the checksum of what stands before it, as a careful forger writes it."""
    text = json.dumps({k: v for k, v in about.items() if k != "crc32"})[:-1]
    return f'{text}, "crc32": {zlib.crc32(text.encode())}}}'


def odd_tree(seed):
    """A tree with every kind of leaf that a file can hold."""
    torch.manual_seed(seed)
    model = fl.Chain(fl.Dense(3, 4, fl.relu), fl.BatchNorm(4), fl.Dense(4, 2))
    w = torch.randn(2, 3)
    numbers = {"epoch": seed, "rate": 0.5 + seed, "name": f"run {seed}", "none": None, "flag": bool(seed)}
    odd = {"bytes": bytes([seed]), "z": complex(seed, 2), "inf": float("-inf" if seed else "inf")}
    arrays = {"array": np.arange(3) + seed, "scalar": np.float32(seed), "half": np.ones(2, np.float16) * seed}
    tensors = {
        "complex": torch.randn(2, dtype=torch.complex128),
        "bools": torch.tensor([True, False, bool(seed)]),
        "empty": torch.zeros(0, 3),
        "small": torch.randn(2).bfloat16(),
        "key": fl.Key(seed),
    }
    return {
        "model": model,
        "state": fl.setup(fl.Adam(), model),
        "ties": [w, w],
        **numbers,
        **odd,
        **arrays,
        **tensors,
    }


def leaves_of(tree):
    return optree.tree_leaves(tree, none_is_leaf=True, namespace="fluxlike")


def fingerprint(tree):
    """Every leaf by its bits, and which are tied."""
    leaves = leaves_of(tree)
    first = {id(x): i for i, x in reversed([*enumerate(leaves)])}
    return [bits(x) if not isinstance(x, torch.Tensor) else (first[id(x)], bits(x)) for x in leaves]


def bits(x):
    if isinstance(x, torch.Tensor):
        return str(x.dtype), tuple(x.shape), x.reshape(-1).view(torch.uint8).tolist() if x.numel() else []
    if isinstance(x, (np.ndarray, np.generic)):
        return str(x.dtype), x.shape, x.tobytes()
    return type(x), x if callable(x) else repr(x)


def kinds(tree):
    """Every leaf by its kind alone."""
    return [(type(x), getattr(x, "shape", None), getattr(x, "dtype", None)) for x in leaves_of(tree)]


class Saved:
    """A file of `save`: it comes back with the same values, or is refused."""

    def __init__(self, folder):
        self.file = folder / "tree.safetensors"
        self.like, tree = odd_tree(0), odd_tree(1)
        fl.save(self.file, tree)
        self.raw, self.wanted = self.file.read_bytes(), fingerprint(tree)
        self.header, self.body = taken_apart(self.raw)
        self.about = json.loads(self.header["__metadata__"]["fluxlike"])

    def mutate(self, rng):
        match rng.randrange(6):
            case 0:
                raw = spoiled(rng, self.raw)
            case 4:
                raw = self.raw[: -len(self.body)] + flipped(rng, self.body)
            case 5:
                raw = put_together(
                    json.dumps(self.with_about(renumbered(rng, json.dumps(self.about)))), self.body
                )
            case 1:
                raw = put_together(
                    dumped(rng, self.header), self.body, rng.choice(NUMBERS) + rng.randrange(9)
                )
            case 2:
                raw = put_together(dumped(rng, edited(rng, self.header)), self.body)
            case 3:
                raw = put_together(
                    json.dumps(self.with_about(dumped(rng, edited(rng, self.about)))), self.body
                )
        self.file.write_bytes(raw)

    def with_about(self, text):
        return {**self.header, "__metadata__": {"fluxlike": text}}

    def read(self):
        return fl.load(self.file, like=self.like)

    def fault(self, found):
        return None if fingerprint(found) == self.wanted else "other values"


class Forged(Saved):
    """A file whose author put the checksums right: what is read has the structure and types of the model."""

    def mutate(self, rng):
        about = self.about if rng.random() < 0.3 else edited(rng, self.about)
        header = self.header if rng.random() < 0.7 else edited(rng, self.header)
        body = self.body if rng.random() < 0.5 else flipped(rng, self.body)
        if isinstance(about.get("checksums"), dict) and rng.random() < 0.7:
            for name, entry in header.items():
                if name != "__metadata__" and isinstance(entry, dict):
                    try:
                        about["checksums"][name] = zlib.crc32(body[slice(*entry["data_offsets"])])
                    except (TypeError, KeyError, ValueError):
                        continue
        header = {**header, "__metadata__": {"fluxlike": sealed(about)}}
        self.file.write_bytes(put_together(json.dumps(header), body))

    def fault(self, found):
        bools = found["bools"].view(torch.uint8).tolist()
        return None if kinds(found) == kinds(self.like) and max(bools) < 2 else "another structure"


class Safetensors:
    """A checkpoint in safetensors: names and shapes are the model's, or it is refused."""

    suffix = ".safetensors"

    def __init__(self, folder):
        self.file = folder / f"checkpoint{self.suffix}"
        torch.manual_seed(0)
        self.like = {
            "a": fl.Dense(3, 4),
            "b": {"w": torch.zeros(4).bfloat16(), "n": torch.tensor(3), "e": torch.zeros(0)},
        }
        self.tensors = {
            "a.weight": torch.randn(4, 3),
            "a.bias": torch.randn(4),
            "b.w": torch.randn(4).bfloat16(),
            "b.n": torch.tensor(7),
            "b.e": torch.zeros(0),
        }
        self.write()
        self.raw = self.file.read_bytes()

    def write(self):
        safetensors.torch.save_file(self.tensors, self.file)

    def mutate(self, rng):
        header, body = taken_apart(self.raw)
        raw = (
            put_together(dumped(rng, edited(rng, header)), body)
            if rng.random() < 0.6
            else spoiled(rng, self.raw)
        )
        self.file.write_bytes(raw)

    def read(self):
        fl.read_checkpoint(self.file)
        return fl.load_checkpoint(self.file, self.like)

    def fault(self, found):
        return None if kinds(found) == kinds(self.like) else "another structure"


class Torch(Safetensors):
    """The same in a file of torch.save, spoiled as a whole, or its pickle alone."""

    suffix = ".pt"

    def write(self):
        torch.save(self.tensors, self.file)

    def mutate(self, rng):
        if rng.random() < 0.5:
            self.file.write_bytes(spoiled(rng, self.raw))
            return
        with zipfile.ZipFile(io.BytesIO(self.raw)) as old, zipfile.ZipFile(self.file, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, spoiled(rng, data) if name.endswith("data.pkl") else data)


class Legacy(Torch):
    """The same in the format that torch.save wrote before it wrote archives."""

    def write(self):
        torch.save(self.tensors, self.file, _use_new_zipfile_serialization=False)

    def mutate(self, rng):
        self.file.write_bytes(spoiled(rng, self.raw))


class Shards(Safetensors):
    """The same in two shards, whose index is spoiled: the same values, or it is refused."""

    def __init__(self, folder):
        super().__init__(folder)
        self.file = folder / "model.safetensors.index.json"
        shards = {"a.weight": 1, "a.bias": 2, "b.w": 1, "b.n": 2, "b.e": 2}
        for n in (1, 2):
            held = {name: self.tensors[name] for name in shards if shards[name] == n}
            safetensors.torch.save_file(held, folder / f"model-{n}.safetensors")
        self.index = {"metadata": {}, "weight_map": {k: f"model-{n}.safetensors" for k, n in shards.items()}}
        self.file.write_text(json.dumps(self.index))
        self.raw, self.wanted = self.file.read_bytes(), fingerprint(self.read())

    def mutate(self, rng):
        text = dumped(rng, edited(rng, self.index)).encode("utf-8", "surrogatepass")
        self.file.write_bytes(text if rng.random() < 0.7 else spoiled(rng, self.raw))

    def fault(self, found):
        return None if fingerprint(found) == self.wanted else "other values"


SUBJECTS = {c.__name__: c for c in (Saved, Forged, Safetensors, Torch, Legacy, Shards)}


def limit_memory(room):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))


def give_up(*_):
    raise TimeoutError("ten seconds")


def run(kind, count, seed, status):
    """Reads mutants; `status` holds the number of the one at work."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        subject = SUBJECTS[kind](Path(folder))
        assert subject.fault(subject.read()) is None
        before = fingerprint(subject.like)
        subject.file.write_bytes(b"")
        result = {"refused": 0, "read": 0, "wrong": []}
        signal.signal(signal.SIGPROF, give_up)
        limit_memory(256 << 20)
        for n in range(count):
            Path(status).write_text(str(n))
            subject.mutate(random.Random(f"{kind} {seed} {n}"))
            signal.setitimer(signal.ITIMER_PROF, 10)
            try:
                fault = subject.fault(subject.read())
                result["read"] += fault is None
            except ValueError as error:
                named = folder in str(error) and type(error) is ValueError and len(str(error)) < 100_000
                fault = None if named else f"{type(error).__name__}: {str(error)[:200]}"
                result["refused"] += fault is None
            except Exception as error:
                fault = f"{type(error).__name__}: {str(error)[:200]}"
            signal.setitimer(signal.ITIMER_PROF, 0)
            if fault:
                result["wrong"].append([n, fault])
        if fingerprint(subject.like) != before:
            result["wrong"].append([-1, "like was changed"])
        return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])))
