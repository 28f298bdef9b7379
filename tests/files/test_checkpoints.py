"""`read_checkpoint`, `load_checkpoint`, `match_checkpoint`: by name, all of it or an error, or by report."""

import json
import re
import subprocess
import sys
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl


def tensors():
    return {
        "layers.0.weight": torch.randn(4, 3),
        "layers.0.bias": torch.randn(4),
        "layers.1.weight": torch.randn(2, 4),
        "layers.1.bias": torch.randn(2),
    }


def model():
    return fl.Chain(fl.Dense(3, 4, fl.relu), fl.Dense(4, 2))


def held(tree):
    return dict(fl.trainables(tree, paths=True))


def write(folder, kind, found):
    """A checkpoint of one of the known kinds."""
    names = list(found)
    if kind == "safetensors":
        safetensors.torch.save_file(found, folder / "f.safetensors")
        return folder / "f.safetensors"
    if kind in ("pt", "pth", "bin", "ckpt"):
        torch.save(found, folder / f"f.{kind}")
        return folder / f"f.{kind}"
    if kind == "legacy":
        torch.save(found, folder / "f.pt", _use_new_zipfile_serialization=False)
        return folder / "f.pt"
    form = "safetensors" if kind != "bin shards" else "bin"
    stem = "model" if form == "safetensors" else "pytorch_model"
    files = {name: f"{stem}-{i % 2 + 1}-of-2.{form}" for i, name in enumerate(names)}
    for file in set(files.values()):
        shard = {name: found[name] for name in names if files[name] == file}
        if form == "safetensors":
            safetensors.torch.save_file(shard, folder / file)
        else:
            torch.save(shard, folder / file)
    index = folder / f"{stem}.{form}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return folder if kind == "folder" else index


KINDS = ["safetensors", "pt", "pth", "bin", "ckpt", "legacy", "shards", "bin shards", "folder"]


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_is_read(self, tmp_path, kind):
        found = tensors()
        read = fl.read_checkpoint(write(tmp_path, kind, found))
        assert read.keys() == found.keys()
        assert all(torch.equal(read[name], found[name]) for name in found)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_is_loaded(self, tmp_path, kind):
        found, like = tensors(), model()
        before = fl.tree.clone(like)
        loaded = fl.load_checkpoint(str(write(tmp_path, kind, found)), like)
        assert torch.equal(loaded.layers[0].weight, found["layers.0.weight"])
        assert torch.equal(loaded.layers[1].bias, found["layers.1.bias"])
        assert loaded.layers[0].activation is fl.relu
        assert fl.tree.allclose(like, before)

    @pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
    def test_a_folder_with_a_single_file_is_read(self, tmp_path, file):
        save = safetensors.torch.save_file if file.endswith("safetensors") else torch.save
        save({"w": torch.ones(2)}, tmp_path / file)
        assert fl.read_checkpoint(tmp_path)["w"].tolist() == [1, 1]

    def test_a_folder_without_a_checkpoint_says_what_it_looked_for(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"holds none of model\.safetensors, model\.safetensors\.index\.json"
        ):
            fl.read_checkpoint(tmp_path)

    def test_first_bytes_of_no_known_kind_are_an_error_that_names_the_known(self, tmp_path):
        (tmp_path / "weights.txt").write_text("a text")
        with pytest.raises(
            ValueError, match=r"weights\.txt is no checkpoint by its first bytes: known are safetensors"
        ):
            fl.read_checkpoint(tmp_path / "weights.txt")

    def test_what_fluxlike_saved_is_read_by_its_paths(self, tmp_path):
        run = {"model": model(), "epoch": 3}
        fl.save(tmp_path / "run.safetensors", run)
        loaded = fl.load_checkpoint(tmp_path / "run.safetensors", model(), rename={"model": ""})
        assert fl.tree.allclose(loaded, run["model"])

    def test_every_dtype_of_safetensors_is_read(self, tmp_path):
        found = {str(dtype): torch.ones(3).to(dtype) for dtype in safetensors.torch._TYPES.values()}
        safetensors.torch.save_file(found, tmp_path / "f.safetensors")
        read = fl.read_checkpoint(tmp_path / "f.safetensors")
        assert {name: x.dtype for name, x in read.items()} == {name: x.dtype for name, x in found.items()}
        assert all(torch.equal(read[n].to(torch.complex64), x.to(torch.complex64)) for n, x in found.items())

    @settings(deadline=None, max_examples=50)
    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
                lambda n: n != "__metadata__"
            ),
            st.lists(st.integers(0, 3), max_size=4),
            max_size=6,
        )
    )
    def test_our_reader_agrees_with_the_library(self, tmp_path_factory, shapes):
        file = tmp_path_factory.mktemp("files") / "f.safetensors"
        found = {name: torch.randn(shape) for name, shape in shapes.items()}
        safetensors.torch.save_file(found, file)
        theirs, ours = safetensors.torch.load_file(file), fl.read_checkpoint(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class TestTorchFiles:
    def test_nested_dicts_give_names_in_dots(self, tmp_path):
        torch.save({"a": {"b": {0: torch.ones(1)}}, "c": torch.zeros(1)}, tmp_path / "f.pt")
        assert list(fl.read_checkpoint(tmp_path / "f.pt")) == ["a.b.0", "c"]

    def test_the_part_that_holds_the_model_is_named_by_part(self, tmp_path):
        file = tmp_path / "last.ckpt"
        torch.save({"epoch": 3, "state_dict": tensors(), "optimizer": {"lr": 0.1}}, file)
        assert fl.read_checkpoint(file, part="state_dict").keys() == tensors().keys()
        loaded = fl.load_checkpoint(file, model(), part="state_dict")
        assert loaded.layers[1].bias.shape == (2,)

    def test_without_part_what_is_no_tensor_is_an_error_that_names_the_parts(self, tmp_path):
        file = tmp_path / "last.ckpt"
        torch.save({"epoch": 3, "state_dict": tensors(), "ema": tensors()}, file)
        with pytest.raises(
            ValueError, match=r"a int at 'epoch', no tensor; say which part.*part='state_dict' or part='ema'"
        ):
            fl.read_checkpoint(file)

    def test_a_part_that_is_not_there_is_an_error_that_names_the_parts(self, tmp_path):
        torch.save({"model": tensors()}, tmp_path / "f.pt")
        with pytest.raises(ValueError, match="has no part 'state_dict'; its parts are: 'model'"):
            fl.read_checkpoint(tmp_path / "f.pt", part="state_dict")

    def test_a_file_of_save_that_holds_the_model_beside_others_names_the_part_to_read(self, tmp_path):
        file = tmp_path / "run.safetensors"
        saved = {"epoch": 3, "model": model(), "state": fl.setup(fl.Adam(), model())}
        fl.save(file, saved)
        advice = r"part= reads one of its parts alone: 'epoch', 'model', 'state'; .* write part='model'$"
        with pytest.raises(ValueError, match=advice):
            fl.load_checkpoint(file, model())
        assert fl.tree.allclose(fl.load_checkpoint(file, model(), part="model"), saved["model"])

    def test_parts_that_are_no_better_than_the_whole_are_named_without_advice(self, tmp_path):
        fl.save(tmp_path / "two", {"body": model(), "head": model()})
        with pytest.raises(ValueError, match=r"part= reads one of its parts alone: 'body', 'head'$"):
            fl.load_checkpoint(tmp_path / "two", model())
        with pytest.raises(ValueError) as caught:
            fl.load_checkpoint(tmp_path / "two", model(), part="other")
        assert "has no part 'other'; its parts are: 'body', 'head'" in str(caught.value)

    def test_a_model_of_which_some_fits_is_told_nothing_of_parts(self, tmp_path):
        fl.save(tmp_path / "small", fl.Dense(2, 1, bias=False))
        with pytest.raises(ValueError) as caught:
            fl.load_checkpoint(tmp_path / "small", fl.Dense(2, 1))
        assert "part=" not in str(caught.value)

    def test_a_part_of_a_flat_file_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match=r"no parts to choose from.*rename=\{'model': ''\}"):
            fl.read_checkpoint(write(tmp_path, "safetensors", tensors()), part="model")

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path):
        class Harm:
            def __reduce__(self):
                return print, ("harm",)

        torch.save({"w": torch.ones(1), "x": Harm()}, tmp_path / "f.pt")
        with pytest.raises(ValueError, match=r"f\.pt holds more than tensors and plain containers: a print"):
            fl.read_checkpoint(tmp_path / "f.pt")

    @pytest.mark.parametrize("found", [torch.ones(2), [torch.ones(2)], 5], ids=["tensor", "list", "number"])
    def test_a_file_without_names_is_an_error(self, tmp_path, found):
        torch.save(found, tmp_path / "f.pt")
        with pytest.raises(ValueError, match="not tensors by name"):
            fl.read_checkpoint(tmp_path / "f.pt")

    def test_names_that_fall_together_are_an_error(self, tmp_path):
        torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, tmp_path / "f.pt")
        with pytest.raises(ValueError, match=r"holds 'a\.b' twice"):
            fl.read_checkpoint(tmp_path / "f.pt")

    def test_views_of_one_memory_come_apart(self, tmp_path):
        base = torch.arange(1000.0)
        torch.save({"a": base, "b": base[:2], "c": base.view(10, 100).T}, tmp_path / "f.pt")
        read = fl.read_checkpoint(tmp_path / "f.pt")
        assert len({x.untyped_storage().data_ptr() for x in read.values()}) == 3
        assert read["b"].untyped_storage().nbytes() == 8
        assert torch.equal(read["c"], base.view(10, 100).T)

    def test_parameters_come_as_plain_tensors(self, tmp_path):
        torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "f.pt")
        w = fl.load_checkpoint(tmp_path / "f.pt", {"w": torch.zeros(2)})["w"]
        assert type(w) is torch.Tensor
        assert not w.requires_grad


def reindex(index, change):
    found = json.loads(index.read_text())
    change(found["weight_map"])
    index.write_text(json.dumps(found))


class TestShards:
    @pytest.fixture(params=["shards", "bin shards"])
    def index(self, request, tmp_path):
        return write(tmp_path, request.param, tensors())

    @pytest.mark.parametrize(
        "shard", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 5, None]
    )
    def test_a_shard_outside_the_folder_is_refused(self, index, shard):
        reindex(index, lambda names: names.update({"layers.0.bias": shard}))
        with pytest.raises(
            ValueError, match=r"index\.json .*the shard of 'layers\.0\.bias' is .*same folder"
        ):
            fl.read_checkpoint(index)

    def test_missing_shards_are_named(self, index):
        shard = next(f for f in sorted(index.parent.iterdir()) if "-1-of-2" in f.name)
        shard.unlink()
        with pytest.raises(ValueError, match=rf"of 2 shards 1 are missing: {shard.name}"):
            fl.read_checkpoint(index)

    def test_a_name_that_its_shard_lacks_is_an_error(self, index):
        reindex(index, lambda names: names.update({"extra": names["layers.0.bias"]}))
        with pytest.raises(ValueError, match=r"'extra' is not in .*-2-of-2.*: it is in none"):
            fl.read_checkpoint(index)

    def test_a_name_that_is_in_another_shard_is_an_error(self, index):
        reindex(index, lambda names: names.update({"layers.0.bias": names["layers.0.weight"]}))
        with pytest.raises(ValueError, match=r"'layers\.0\.bias' is not in .*-1-of-2.*: it is in .*-2-of-2"):
            fl.read_checkpoint(index)

    def test_a_name_that_the_index_lacks_is_an_error(self, index):
        reindex(index, lambda names: names.pop("layers.0.bias"))
        with pytest.raises(ValueError, match=r"'layers\.0\.bias' of .* is not in the index"):
            fl.read_checkpoint(index)

    def test_a_name_in_two_shards_is_an_error(self, index):
        files = sorted(f for f in index.parent.iterdir() if "-of-2" in f.name)
        both = {**fl.read_checkpoint(files[0]), "layers.0.bias": torch.ones(4)}
        save = safetensors.torch.save_file if files[0].suffix == ".safetensors" else torch.save
        save(both, files[0])
        with pytest.raises(ValueError, match=r"'layers\.0\.bias' is in .*-1-of-2.* and in .*-2-of-2"):
            fl.read_checkpoint(index)

    def test_a_name_twice_in_the_index_is_an_error(self, index):
        index.write_text(
            index.read_text().replace('"layers.0.bias":', '"layers.0.weight": "x", "layers.0.bias":')
        )
        with pytest.raises(ValueError, match=r"the key 'layers\.0\.weight' stands there twice"):
            fl.read_checkpoint(index)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "text", ""])
    def test_an_index_of_another_form_is_an_error(self, index, text):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json does not agree with its shards"):
            fl.read_checkpoint(index)


class TestRename:
    def load(self, found, like, rename):
        return fl.load_checkpoint(found, like, rename=rename)

    def test_a_place_is_renamed_with_all_below_it(self):
        found = {f"module.{name}": x for name, x in tensors().items()}
        loaded = self.load(found, model(), {"module": ""})
        assert torch.equal(loaded.layers[1].bias, found["module.layers.1.bias"])

    def test_a_prefix_is_put_before_every_name(self):
        loaded = self.load({"weight": torch.ones(1, 2)}, {"a": fl.Dense(2, 1, bias=False)}, {"": "a"})
        assert loaded["a"].weight.tolist() == [[1, 1]]

    def test_a_rule_is_for_whole_parts_of_a_name(self):
        found = {"fc.w": torch.ones(1), "fc1.w": torch.zeros(1)}
        loaded = self.load(found, {"a": {"w": torch.empty(1)}, "fc1": {"w": torch.empty(1)}}, {"fc": "a"})
        assert (loaded["a"]["w"].item(), loaded["fc1"]["w"].item()) == (1, 0)

    def test_places_are_swapped(self):
        loaded = self.load(
            {"a": torch.ones(1), "b": torch.zeros(1)},
            {"a": torch.empty(1), "b": torch.empty(1)},
            {"a": "b", "b": "a"},
        )
        assert (loaded["a"].item(), loaded["b"].item()) == (0, 1)

    def test_of_several_rules_the_longest_counts(self):
        found = {"x.a": torch.ones(1), "x.b": torch.zeros(1)}
        loaded = self.load(found, {"y": {"a": torch.empty(1)}, "c": torch.empty(1)}, {"x": "y", "x.b": "c"})
        assert (loaded["y"]["a"].item(), loaded["c"].item()) == (1, 0)

    def test_none_drops_a_place(self):
        report = fl.match_checkpoint(
            {**tensors(), "head.w": torch.ones(1), "head.b": torch.ones(1)}, model(), rename={"head": None}
        )
        assert report.dropped == ("head.w", "head.b")
        assert report.unexpected == ()

    def test_a_place_may_be_written_as_our_path(self):
        loaded = self.load({"fc.weight": torch.ones(1, 2)}, [fl.Dense(2, 1, bias=False)], {"fc": "[0]"})
        assert loaded[0].weight.tolist() == [[1, 1]]

    def test_patterns_apply_in_order(self):
        found = {re.sub("layers", "block", name): x for name, x in tensors().items()}
        rules = [(r"^block(.*)$", r"stage\1"), (re.compile(r"^stage"), "layers")]
        assert torch.equal(self.load(found, model(), rules).layers[0].bias, found["block.0.bias"])

    def test_a_pattern_drops(self):
        found = {**tensors(), "a.mask": torch.ones(1), "b.mask": torch.ones(1)}
        report = fl.match_checkpoint(found, model(), rename=[(r"\.mask$", None)])
        assert report.dropped == ("a.mask", "b.mask")

    def test_a_function_renames_and_drops(self):
        found = {**{name.upper(): x for name, x in tensors().items()}, "EXTRA": torch.ones(1)}
        loaded = self.load(found, model(), lambda name: None if name == "EXTRA" else name.lower())
        assert torch.equal(loaded.layers[0].bias, found["LAYERS.0.BIAS"])

    def test_a_rule_that_fits_nothing_is_an_error(self):
        with pytest.raises(
            ValueError, match=r"a rule for 'layer\.0', and no name .* did you mean 'layers\.0'"
        ):
            self.load(tensors(), model(), {"layer.0": "x"})
        with pytest.raises(ValueError, match=r"the pattern '\^layer_', which no name"):
            self.load(tensors(), model(), [("^layer_", "x")])

    @pytest.mark.parametrize(
        "rename",
        [{"layers.0": "layers.1"}, [(r"\d", "0")], lambda name: "same"],
        ids=["dict", "pairs", "function"],
    )
    def test_two_names_that_become_one_are_an_error(self, rename):
        with pytest.raises(ValueError, match=r"both become .*; drop one by rename="):
            self.load(tensors(), model(), rename)

    @pytest.mark.parametrize("rename", ["text", 5, {"a": 5}, [5], [("a",)]], ids=str)
    def test_rules_of_no_known_form_are_an_error(self, rename):
        with pytest.raises(TypeError, match="rename is a"):
            self.load(tensors(), model(), rename)

    def test_a_function_that_returns_no_name_is_an_error(self):
        with pytest.raises(TypeError, match=r"rename made a int of 'layers\.0\.weight'"):
            self.load(tensors(), model(), lambda name: 5)

    def test_two_rules_for_one_place_are_an_error(self):
        rules = {"layers.0.weight": "a", ".layers[0].weight": "b"}
        with pytest.raises(
            ValueError, match=r"two rules for one place, 'layers\.0\.weight' and '\.layers\[0\]\.weight'"
        ):
            self.load(tensors(), model(), rules)

    def test_a_name_of_very_many_parts_follows_the_rules(self):
        deep = "x." * 5000 + "w"
        report = fl.match_checkpoint({deep: torch.ones(1)}, {"w": torch.zeros(1)}, rename={"x": None})
        assert report.dropped == (deep,)

    @pytest.mark.parametrize(
        "rule", [("(", "x"), ("layers", r"\9"), (re.compile("layers"), r"\g<n>")], ids=range(3)
    )
    def test_a_bad_pattern_is_an_error_that_names_the_rule(self, rule):
        with pytest.raises(
            ValueError, match=r"rename has the rule \('.*', '.*'\), which re\.sub can't apply: "
        ):
            self.load(tensors(), model(), [rule])


class TestMismatches:
    def fail(self, found, like, **options):
        before = {path: (x, x.clone()) for path, x in held(like).items() if not x.is_meta}
        with pytest.raises(ValueError, match="does not fit the model, which is left as it was") as error:
            fl.load_checkpoint(found, like, **options)
        assert all(x is held(like)[p] and torch.equal(x, old) for p, (x, old) in before.items())
        return str(error.value)

    def test_what_is_missing_is_named_with_a_similar_name(self):
        found = tensors()
        found["layers.0.wieght"] = found.pop("layers.0.weight")
        text = self.fail(found, model())
        assert ".layers[0].weight is missing; did you mean 'layers.0.wieght' of the checkpoint?" in text
        assert "'layers.0.wieght' of the checkpoint has no place" in text

    def test_a_rule_in_the_wrong_direction_is_seen(self):
        found, like = {"fc.weight": torch.ones(1, 2)}, {"fc": fl.Dense(2, 1, bias=False)}
        text = self.fail(found, like, rename={"fc": "head"})
        assert "['fc'].weight is missing: rename made 'head.weight' of it" in text
        assert "'fc.weight' of the checkpoint has no place as 'head.weight'" in text

    def test_a_similar_name_is_looked_for_among_the_new_ones(self):
        found = {"old.layers.0.wieght": torch.ones(4, 3)}
        text = self.fail(found, model(), rename={"old": ""})
        assert ".layers[0].weight is missing; did you mean 'old.layers.0.wieght' of the checkpoint?" in text

    def test_another_shape_is_named(self):
        text = self.fail({**tensors(), "layers.1.bias": torch.ones(5)}, model())
        assert ".layers[1].bias is (5,) in the checkpoint, (2,) in the model" in text

    @pytest.mark.parametrize("shape", [(1,), (2, 1), ()])
    def test_nothing_is_broadcast(self, shape):
        assert ".layers[1].bias is" in self.fail({**tensors(), "layers.1.bias": torch.ones(shape)}, model())

    def test_another_dtype_is_named_with_what_to_write(self):
        text = self.fail({**tensors(), "layers.1.bias": torch.ones(2).bfloat16()}, model())
        assert ".layers[1].bias is torch.bfloat16 in the checkpoint, torch.float32 in the model" in text
        assert "cast=True converts" in text

    def test_a_prefix_that_all_names_have_is_seen(self):
        text = self.fail({f"module.{name}": x for name, x in tensors().items()}, model())
        assert "map names by rename={'module': ''}" in text

    def test_a_prefix_that_all_names_lack_is_seen(self):
        text = self.fail(tensors(), {"backbone": model()})
        assert "map names by rename={'': 'backbone'}" in text

    def test_the_first_ten_are_named_and_the_others_counted(self):
        like = [torch.zeros(1) for _ in range(30)]
        lines = self.fail({}, like).splitlines()
        assert len(lines) == 13
        assert lines[1].strip() == "[0] is missing"
        assert lines[11].strip() == "… and 20 more"

    def test_a_hostile_name_is_shown_short_and_escaped(self):
        text = self.fail({**tensors(), "\x1b[31m\n" * 100_000: torch.ones(1)}, model())
        assert "\x1b" not in text
        assert len(text) < 1000

    def test_a_mismatched_file_is_named_and_none_of_its_data_read(self, tmp_path, monkeypatch):
        from fluxlike.files.reader import TensorFile

        file = write(tmp_path, "safetensors", {**tensors(), "more": torch.ones(1)})
        monkeypatch.setattr(TensorFile, "read", None)
        assert str(file) in self.fail(file, model())

    @pytest.mark.parametrize("source", [5, None, [torch.ones(1)]])
    def test_a_source_of_another_kind_is_an_error(self, source):
        with pytest.raises(TypeError, match="a checkpoint is a path or a dict of tensors"):
            fl.load_checkpoint(source, model())

    def test_a_module_is_an_error_that_says_what_to_write(self):
        with pytest.raises(TypeError, match=r"found a Linear; give module\.state_dict\(\)"):
            fl.load_checkpoint(torch.nn.Linear(3, 4), model())

    def test_places_of_one_name_are_an_error(self):
        like = {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}
        with pytest.raises(ValueError, match=r"of the model are both called 'a\.b'"):
            fl.load_checkpoint({"a.b": torch.ones(1)}, like)


class TestCast:
    def test_floats_are_converted_to_the_dtype_of_the_model(self, tmp_path):
        found = {name: x.bfloat16() for name, x in tensors().items()}
        loaded = fl.load_checkpoint(write(tmp_path, "safetensors", found), fl.f64(model()), cast=True)
        assert torch.equal(loaded.layers[0].weight, found["layers.0.weight"].double())

    def test_complex_numbers_are_converted(self):
        w = torch.tensor([1 + 2j])
        loaded = fl.load_checkpoint({"w": w}, {"w": w.to(torch.complex128)}, cast=True)
        assert loaded["w"].dtype == torch.complex128

    @pytest.mark.parametrize(
        ("found", "wanted"),
        [(torch.int64, torch.float32), (torch.float32, torch.int64), (torch.int32, torch.int64),
         (torch.complex64, torch.float32), (torch.float32, torch.complex64), (torch.bool, torch.float32)],
        ids=str,
    )  # fmt: skip
    def test_what_is_no_rounding_is_not_converted(self, found, wanted):
        with pytest.raises(ValueError, match=f"is {found} in the checkpoint, {wanted} in the model"):
            fl.load_checkpoint(
                {"w": torch.ones(1, dtype=found)}, {"w": torch.ones(1, dtype=wanted)}, cast=True
            )

    @pytest.mark.parametrize(
        ("found", "dtype"),
        [(torch.tensor([1.0, 1e6]), torch.float16),
         (torch.tensor([1e300 + 0j], dtype=torch.complex128), torch.complex64),
         (torch.tensor([1e6]), torch.float8_e5m2), (torch.tensor([3.4e38]), torch.bfloat16),
         (torch.tensor([1e6]).to_sparse(), torch.float16)],
        ids=range(5),
    )  # fmt: skip
    def test_a_number_beyond_the_dtype_is_an_error(self, found, dtype):
        like = {"w": torch.zeros(found.shape, dtype=dtype)}
        like = like if found.layout is torch.strided else {"w": like["w"].to_sparse()}
        with pytest.raises(
            ValueError, match=rf"'w' of the checkpoint holds .*, which {dtype} can't; make the model"
        ):
            fl.load_checkpoint({"w": found}, like, cast=True)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e5m2], ids=str)
    def test_what_was_infinite_stays_so(self, dtype):
        w = torch.tensor([float("inf"), float("nan"), 1.0])
        loaded = fl.load_checkpoint({"w": w}, {"w": torch.zeros(3, dtype=dtype)}, cast=True)
        assert str(loaded["w"].float().tolist()) == "[inf, nan, 1.0]"


class TestReport:
    def test_a_new_head_keeps_its_own_values(self):
        found, like = {**tensors(), "extra": torch.ones(1)}, fl.Chain(fl.Dense(3, 4, fl.relu), fl.Dense(4, 7))
        report = fl.match_checkpoint(found, like)
        assert report.loaded == {".layers[0].weight": "layers.0.weight", ".layers[0].bias": "layers.0.bias"}
        assert [(d.path, d.found, d.wanted) for d in report.reshaped] == [
            (".layers[1].weight", (2, 4), (7, 4)),
            (".layers[1].bias", (2,), (7,)),
        ]
        assert (report.missing, report.unexpected) == ((), ("extra",))
        assert report.model.layers[1].weight is like.layers[1].weight
        assert torch.equal(report.model.layers[0].weight, found["layers.0.weight"])

    def test_it_prints_as_a_table(self):
        report = fl.match_checkpoint(
            {"a": torch.ones(1), "c": torch.ones(2)},
            {"a": torch.zeros(1), "b": torch.ones(1), "c": torch.ones(3)},
        )
        assert str(report).splitlines() == [
            "loaded      1",
            "missing     1  in the model, not in the checkpoint",
            "  ['b']",
            "kept        0",
            "unexpected  0",
            "reshaped    1  of another shape",
            "  ['c'] is (2,) in the checkpoint, (3,) in the model",
            "retyped     0",
            "dropped     0",
        ]

    def test_a_long_table_is_cut(self):
        report = fl.match_checkpoint({}, [torch.zeros(1) for _ in range(100)])
        assert "  … and 80 more" in str(report).splitlines()
        assert len(report.missing) == 100

    def test_retyped_places_stay(self):
        like = {"w": torch.zeros(1)}
        report = fl.match_checkpoint({"w": torch.ones(1).double()}, like)
        assert report.retyped[0].found == torch.float64
        assert report.model["w"] is like["w"]


class TestBatchNorm:
    def theirs(self):
        norm = torch.nn.BatchNorm1d(3)
        norm(torch.randn(8, 3))
        return norm

    def test_the_count_that_no_layer_here_keeps_is_passed_by_and_reported(self):
        norm = self.theirs()
        report = fl.match_checkpoint(norm.state_dict(), fl.BatchNorm(3))
        assert report.dropped == ("num_batches_tracked",)
        loaded = fl.load_checkpoint(norm.state_dict(), fl.BatchNorm(3))
        assert torch.equal(loaded.running_var, norm.running_var)

    def test_a_layer_that_keeps_the_count_takes_it(self):
        norm = self.theirs()
        loaded = fl.load_checkpoint(norm.state_dict(), fl.BatchNorm(3, momentum=None))
        assert loaded.num_batches_tracked.item() == 1

    def test_a_count_whose_statistics_have_no_place_is_unexpected(self):
        found = {f"norm.{name}": x for name, x in self.theirs().state_dict().items()}
        report = fl.match_checkpoint({**found, "w": torch.ones(1)}, {"w": torch.zeros(1)})
        assert "norm.num_batches_tracked" in report.unexpected


class TestTies:
    def tied(self):
        w = torch.zeros(5, 3)
        return {"embed": {"weight": w}, "head": {"weight": w}}

    @pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
    def test_a_tie_stored_once_is_found_by_any_name(self, name):
        loaded = fl.load_checkpoint({name: torch.ones(5, 3)}, self.tied())
        assert loaded["embed"]["weight"] is loaded["head"]["weight"]
        assert loaded["head"]["weight"].eq(1).all()

    def test_a_tie_stored_twice_with_the_same_values_stays_a_tie(self, tmp_path):
        found = {
            "embed.weight": torch.full((5, 3), float("nan")),
            "head.weight": torch.full((5, 3), float("nan")),
        }
        loaded = fl.load_checkpoint(write(tmp_path, "safetensors", found), self.tied())
        assert loaded["embed"]["weight"] is loaded["head"]["weight"]

    def test_different_values_at_a_tie_are_an_error(self):
        found = {"embed.weight": torch.ones(5, 3), "head.weight": torch.zeros(5, 3)}
        with pytest.raises(
            ValueError,
            match=r"\['embed'\]\['weight'\] is one tensor at several places.*'head\.weight'.*differ",
        ):
            fl.match_checkpoint(found, self.tied())

    def test_different_shapes_at_a_tie_are_reported(self):
        report = fl.match_checkpoint(
            {"embed.weight": torch.ones(5, 3), "head.weight": torch.zeros(7, 3)}, self.tied()
        )
        assert report.reshaped[0].path == "['head']['weight']"
        assert report.loaded == {}

    def test_the_name_that_fits_beside_one_that_does_not_is_reported(self):
        report = fl.match_checkpoint(
            {"embed.weight": torch.ones(5, 3), "head.weight": torch.zeros(7, 3)}, self.tied()
        )
        assert report.reshaped[0].unused == ("embed.weight",)
        assert "; so 'embed.weight' is not loaded, being tied to it" in str(report)

    @pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta state:UserWarning")
    @pytest.mark.parametrize("sparse", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
    def test_sparse_tensors_at_a_tie_are_compared(self, sparse):
        make = lambda *x: getattr(torch.tensor(x).diag(), sparse)()  # noqa: E731
        w = make(0.0, 1.0)
        like = {"a": w, "b": w}
        loaded = fl.load_checkpoint({"a": make(2.0, 3.0), "b": make(2.0, 3.0)}, like)
        assert loaded["a"] is loaded["b"]
        for other in (make(2.0, 4.0), make(0.0, 2.0)):
            with pytest.raises(ValueError, match=r"one tensor at several places.*differ"):
                fl.load_checkpoint({"a": make(2.0, 3.0), "b": other}, like)

    def test_a_missing_tie_is_named_once(self):
        assert fl.match_checkpoint({}, self.tied()).missing == ("['embed']['weight']",)

    def test_what_the_checkpoint_ties_does_not_tie_the_model(self, tmp_path):
        w = torch.ones(3)
        torch.save({"a": w, "b": w}, tmp_path / "f.pt")
        loaded = fl.load_checkpoint(tmp_path / "f.pt", {"a": torch.zeros(3), "b": torch.zeros(3)})
        assert loaded["a"].data_ptr() != loaded["b"].data_ptr()


class TestPlaces:
    @pytest.mark.parametrize("kind", ["safetensors", "pt", "dict"])
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_channels_last_of_the_model_stays(self, tmp_path, kind, device):
        w = torch.randn(8, 4, 3, 3)
        like = fl.channels_last({"w": torch.zeros(8, 4, 3, 3, device=device)})
        loaded = fl.load_checkpoint({"w": w} if kind == "dict" else write(tmp_path, kind, {"w": w}), like)
        assert loaded["w"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(loaded["w"], w)

    def test_the_model_shares_no_memory_with_a_dict(self):
        found = tensors()
        loaded = fl.load_checkpoint(found, model())
        loaded.layers[0].bias.zero_()
        assert found["layers.0.bias"].any()

    @pytest.mark.parametrize("kind", ["safetensors", "pt", "shards"])
    def test_a_model_on_the_meta_device_comes_to_main_memory(self, tmp_path, kind):
        with torch.device("meta"):
            like = model()
            loaded = fl.load_checkpoint(write(tmp_path, kind, tensors_on_cpu()), like)
        assert fl.get_device(loaded) == torch.device("cpu")
        assert loaded.layers[0].weight.eq(1).all()

    def test_tensors_on_the_meta_device_are_an_error(self):
        with pytest.raises(
            ValueError, match="'w' of the checkpoint is on the meta device, which holds no data"
        ):
            fl.load_checkpoint({"w": torch.ones(1, device="meta")}, {"w": torch.zeros(1)})

    def test_integer_buffers_are_loaded(self):
        loaded = fl.load_checkpoint({"n": torch.tensor([3])}, {"n": torch.tensor([0])})
        assert loaded["n"].item() == 3

    def test_constants_stay(self):
        like = {"w": torch.zeros(1), "rate": 0.5, "f": fl.relu, "none": None}
        loaded = fl.load_checkpoint({"w": torch.ones(1)}, like)
        assert (loaded["rate"], loaded["f"], loaded["none"]) == (0.5, fl.relu, None)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_tensors_go_to_the_device_of_the_model(self, tmp_path):
        loaded = fl.load_checkpoint(write(tmp_path, "shards", tensors()), fl.gpu(model()))
        assert fl.get_device(loaded).type == "cuda"


def tensors_on_cpu():
    with torch.device("cpu"):
        return {name: torch.ones(x.shape) for name, x in tensors().items()}


class TestMemory:
    """Peak memory beyond what was there before, in a process of its own."""

    @pytest.mark.parametrize(
        ("kind", "most"), [("safetensors", 1.1), ("shards", 1.1), ("pt", 1.2), ("bin shards", 1.2)]
    )
    def test_a_checkpoint_is_never_in_memory_twice(self, tmp_path, kind, most):
        found = {f"w{i}": torch.randn(1_250_000) for i in range(20)}  # 100 MB
        path = write(tmp_path, kind, found)
        torch.save({"v": torch.ones(2)}, tmp_path / "small.pt")
        safetensors.torch.save_file({"v": torch.ones(2)}, tmp_path / "small.safetensors")
        code = (
            "import re, sys, torch, fluxlike as fl\n"
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
            "for small in sys.argv[2:]: fl.load_checkpoint(small, {'v': torch.zeros(2)})\n"
            "like = {f'w{i}': torch.zeros(1_250_000, device='meta') for i in range(20)}\n"
            "before = peak()\n"
            "model = fl.load_checkpoint(sys.argv[1], like)\n"
            "print((peak() - before) * 1024 / 100e6)\n"
        )
        small = [tmp_path / "small.pt", tmp_path / "small.safetensors"]
        command = [sys.executable, "-c", code, path, *small]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert 0.9 < float(done.stdout) < most


class TorchBlock(torch.nn.Module):
    """The basic block of ResNet-18, with torchvision's names."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.conv1, self.bn1 = conv(inside, outside, 3, stride, 1, bias=False), norm(outside)
        self.conv2, self.bn2 = conv(outside, outside, 3, 1, 1, bias=False), norm(outside)
        self.downsample = None
        if stride > 1 or inside != outside:
            self.downsample = torch.nn.Sequential(conv(inside, outside, 1, stride, bias=False), norm(outside))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def torch_resnet(classes=10):
    stages = {
        f"layer{n + 1}": torch.nn.Sequential(TorchBlock(a, b, s), TorchBlock(b, b, 1))
        for n, (a, b, s) in enumerate([(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)])
    }
    stem = {
        "conv1": torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        "bn1": torch.nn.BatchNorm2d(64),
        "relu": torch.nn.ReLU(),
        "maxpool": torch.nn.MaxPool2d(3, 2, 1),
    }
    head = {
        "avgpool": torch.nn.AdaptiveAvgPool2d(1),
        "flatten": torch.nn.Flatten(),
        "fc": torch.nn.Linear(512, classes),
    }
    return torch.nn.Sequential(OrderedDict({**stem, **stages, **head}))


def our_block(inside, outside, stride):
    def conv(size, a, b, stride=1):
        return fl.Conv((size, size), a, b, stride=stride, pad=size // 2, bias=False)

    main = fl.Chain(
        conv(3, inside, outside, stride),
        fl.BatchNorm(outside, fl.relu),
        conv(3, outside, outside),
        fl.BatchNorm(outside),
    )
    if stride == 1 and inside == outside:
        return fl.Chain(fl.SkipConnection(main, torch.add), fl.relu)
    return fl.Chain(
        fl.Parallel(torch.add, main, fl.Chain(conv(1, inside, outside, stride), fl.BatchNorm(outside))),
        fl.relu,
    )


def our_resnet(classes=10):
    stages = [
        fl.Chain(our_block(a, b, s), our_block(b, b, 1))
        for a, b, s in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
    ]
    stem = fl.Chain(
        fl.Conv((7, 7), 3, 64, stride=2, pad=3, bias=False),
        fl.BatchNorm(64, fl.relu),
        fl.MaxPool((3, 3), stride=2, pad=1),
    )
    return fl.Chain(stem, *stages, fl.Chain(fl.GlobalMeanPool(), fl.flatten, fl.Dense(512, classes)))


FIRST, LATER = r"^layer([2-4])\.0\.", r"^layer(\d)\.(\d)\."
INSIDE = {"conv1": 0, "bn1": 1, "conv2": 2, "bn2": 3}
RULES = [
    (r"^conv1\.", "layers.0.layers.0."),
    (r"^bn1\.", "layers.0.layers.1."),
    (r"^fc\.", "layers.5.layers.2."),
    *(
        (rf"{FIRST}{name}\.", rf"layers.\1.layers.0.layers.0.layers.0.layers.{i}.")
        for name, i in INSIDE.items()
    ),
    (rf"{FIRST}downsample\.", r"layers.\1.layers.0.layers.0.layers.1.layers."),
    *(
        (rf"{LATER}{name}\.", rf"layers.\1.layers.\2.layers.0.layer.layers.{i}.")
        for name, i in INSIDE.items()
    ),
]


class TestResNet:
    """torchvision's ResNet-18 by name, in a model that was put together here."""

    @pytest.mark.parametrize("kind", ["safetensors", "pth"])
    def test_a_resnet_of_torch_runs_here_with_the_same_outputs(self, tmp_path, kind):
        torch.manual_seed(0)
        theirs = torch_resnet().double()
        theirs(torch.randn(2, 3, 64, 64, dtype=torch.float64))  # moves the statistics
        file = write(tmp_path, kind, dict(theirs.eval().state_dict()))
        with torch.device("meta"):
            like = fl.f64(our_resnet())
        loaded = fl.load_checkpoint(file, like, rename=RULES)
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        assert torch.allclose(loaded(x), theirs(x), rtol=1e-10, atol=1e-10)

    def test_another_head_is_named_and_kept(self):
        found, like = torch_resnet(classes=1000).state_dict(), our_resnet(classes=7)
        with pytest.raises(
            ValueError, match=r"\.layers\[5\]\.layers\[2\]\.weight is \(1000, 512\) in the check"
        ):
            fl.load_checkpoint(found, like, rename=RULES)
        report = fl.match_checkpoint(found, like, rename=RULES)
        assert [d.path for d in report.reshaped] == [
            ".layers[5].layers[2].weight",
            ".layers[5].layers[2].bias",
        ]
        assert (report.missing, report.unexpected) == ((), ())
        assert len(report.dropped) == 20
        assert report.model.layers[5].layers[2].weight is like.layers[5].layers[2].weight

    def test_a_wrapped_module_takes_its_names_as_they_are(self, tmp_path):
        theirs, other = torch_resnet().double().eval(), torch_resnet().double()
        file = write(tmp_path, "shards", dict(theirs.state_dict()))
        loaded = fl.load_checkpoint(file, fl.from_torch(other))
        x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
        assert torch.equal(loaded(x), theirs(x))
        assert not torch.equal(loaded(x), other.eval()(x))
