"""The benchmarks run, keep what they measured, and draw it. How fast anything is, no test asserts."""

from __future__ import annotations

import importlib
import json
import subprocess
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

import fluxlike as fl
from benchmarks import __main__ as command
from benchmarks import harness, inference, jax_networks, machine, resnet_training, scaling, scaling_cases
from benchmarks.harness import Row
from benchmarks.results import Results
from benchmarks.torchvision_here import torchvision

MACHINE = machine.machine()


def in_a_moment(*calls, **_):
    return harness.in_turns(*calls, budget=0.001, rounds=1)


@pytest.fixture
def hurried(monkeypatch):
    """Benchmarks that measure next to nothing."""
    monkeypatch.setattr(scaling, "in_turns", in_a_moment)
    monkeypatch.setattr(scaling, "REPEATS", 2)

    def hurry(name):
        module = importlib.import_module(f"benchmarks.{name}")
        if hasattr(module, "in_turns"):
            monkeypatch.setattr(module, "in_turns", in_a_moment)
        return module

    return hurry


@pytest.fixture
def not_compiled(monkeypatch):
    """Nothing is compiled, so that only what is around it takes time."""
    monkeypatch.setattr(torch, "compile", lambda f: f)
    monkeypatch.setattr(fl, "jit", lambda f, **_: f)
    monkeypatch.setattr(fl, "inference", lambda model, x: model)


@pytest.mark.parametrize("name", command.NAMES)
def test_every_name_is_a_module_with_rows(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").rows)


@pytest.mark.parametrize("name", ["flatten", "gradient", "layers", "per_example"])
def test_a_benchmark_gives_rows_of_positive_costs(name, hurried):
    rows = list(islice(hurried(name).rows(), 2))
    assert len(rows) == 2
    assert all(isinstance(row, Row) and row.ours > 0 and row.theirs > 0 for row in rows)


def test_inference_compares_networks_of_the_same_weights(hurried, not_compiled, monkeypatch):
    module = hurried("inference")
    network = inference.Network(lambda: fl.models.ResNet(18), "resnet18", None)
    for name, value in {
        "NETWORKS": {"ResNet18": network}, "SIZE": 32, "BATCHES": (2,), "THREADS": (1,), "BF16": {(1, 2)},
        "ROUNDS": (1, 1),
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(jax_networks, "runs_at", lambda threads: False)
    rows = list(module.rows())
    peers = [(row.name, row.peer) for row in rows]
    plain, halves = "inference, ResNet18, batch 2", "inference, ResNet18, bf16, batch 2"
    assert peers == [
        (plain, "torchvision eager"),
        (plain, "torch.compile, frozen"),
        (f"{plain}, first call", "torch.compile, frozen"),
        (halves, "fluxlike, float32"),
        (halves, "torch.compile, frozen, bf16"),
    ]
    assert max(rows[0].difference, rows[1].difference) < 1e-4
    assert [row.target for row in rows[:2]] == [0.70, 1.00]
    assert 1e-4 < rows[3].difference < 0.5  # of rounding to bfloat16
    assert f"differ by {rows[0].difference:.1e}" in str(rows[0])


def test_training_steps_begin_with_the_same_loss(hurried, not_compiled, monkeypatch):
    module = hurried("resnet_training")
    monkeypatch.setattr(module, "CASES", {32: (("Momentum", "Adam"), (1,))})
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(jax_networks, "runs_at", lambda threads: False)
    rows = list(module.rows())
    assert len(rows) == 10
    assert all(row.difference < 1e-5 for row in rows if row.unit == "s")
    assert all(row.ours > 40 for row in rows if row.unit == "MB")  # 11.7 M parameters


@pytest.mark.parametrize("name", resnet_training.OPTIMISERS)
def test_training_losses_of_the_two_stay_together(name, monkeypatch):
    monkeypatch.setattr(resnet_training, "BATCH", 2)
    rule, make, _ = resnet_training.OPTIMISERS[name]
    ours = resnet_training.ours(resnet_training._start(32), rule, compiled=False)
    theirs = resnet_training.torchs(resnet_training._start(32), make, compiled=False)
    losses = [(float(ours()), float(theirs())) for _ in range(3)]
    for mine, other in losses:
        assert mine == pytest.approx(other, rel=1e-2)  # BatchNorm of two examples makes roundings large


@pytest.mark.slow
def test_the_networks_for_jax_compute_what_torchvisions_do():
    pytest.importorskip("jax")
    for name, run, size in (
        ("resnet18", partial(jax_networks.resnet, 18), 64),
        ("resnet50", partial(jax_networks.resnet, 50), 64),
        ("vgg11", partial(jax_networks.vgg, inference.VGGS[11].stages), 224),
    ):
        module = getattr(torchvision().models, name)(weights=None).eval()
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            expected = module(x)
        found, _ = run(*jax_networks.arrays(module), jax_networks.channels_last(x))
        assert inference.difference(found, expected) < 1e-5, name


@pytest.mark.slow
def test_the_network_for_jax_remembers_statistics_as_torchvisions_does():
    pytest.importorskip("jax")
    module = torchvision().models.resnet18(weights=None).train()
    x = torch.randn(4, 3, 32, 32)
    weights, statistics = jax_networks.arrays(module)
    logits, new = jax_networks.resnet(18, weights, statistics, jax_networks.channels_last(x), training=True)
    expected = module(x)
    assert inference.difference(logits, expected) < 1e-4
    for name, value in module.named_buffers():
        if value.ndim:
            assert inference.difference(new[name], value) < 1e-4, name


# -- scaling


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0])
def test_a_known_exponent_is_found(exponent):
    work = [3.0, 10.0, 40.0, 1000.0]
    first, *others = scaling.exponents(work, [7 * w**exponent for w in work])
    assert first is None
    assert others == pytest.approx([exponent] * 3)


def test_nothing_has_no_exponent_and_work_that_stands_still_counts_as_growing_a_little():
    assert scaling.exponents([1, 2, 4], [0.0, 1.0, -1.0]) == [None, None, None]
    assert scaling.exponents([5, 5], [3.0, 3.0]) == [None, 0.0]
    assert scaling.exponents([5, 5], [3.0, 6.0])[1] > scaling.LIMIT


def test_a_cost_is_steep_where_every_repeat_says_so():
    curve = scaling.Curve("x", "n", (1, 2, 4), lambda n: None)
    work = [1.0, 2.0, 4.0], "leaves"
    always = [[1.0, 4.0, 8.0], [1.1, 4.2, 8.3]]
    once = [[1.0, 4.0, 8.0], [1.0, 2.0, 4.0]]
    peers = [[1.0, 4.0, 8.0]] * 2
    assert [p.steep for p in scaling.points(curve, "time", "s", work, always)] == [False, True, False]
    assert not any(p.steep for p in scaling.points(curve, "time", "s", work, once))
    point = list(scaling.points(curve, "time", "s", work, always, peers))[1]
    assert point.peer_exponent == pytest.approx(2)
    assert str(point).endswith("STEEP, as the peer")
    assert str(replace(point, peer_exponent=1.0)).endswith("STEEP")
    assert "-5 ms" in str(replace(point, cost=-0.005))


def test_the_rows_of_scaling_carry_their_size(hurried, monkeypatch):
    few = {("gradient", "depth"): (1, 2), ("update, donated", "leaves"): (2, 4), ("flatten", "depth"): (2, 4)}
    curves = [
        replace(curve, sizes=few[curve.name, curve.axis])
        for curve in scaling.CURVES
        if (curve.name, curve.axis) in few
    ]
    monkeypatch.setattr(scaling, "CURVES", curves)
    points = list(scaling.rows())
    found = {(p.name, p.axis): [] for p in points}
    for p in points:
        found[p.name, p.axis].append(p)
    assert list(found) == [
        ("gradient, time", "depth"),
        ("gradient, beyond torch", "depth"),
        ("gradient, memory", "depth"),
        ("update, donated, time", "leaves"),
        ("update, donated, memory", "leaves"),
        ("flatten, time", "depth"),
        ("flatten, memory", "depth"),
    ]
    assert [p.size for p in found["gradient, time", "depth"]] == [1, 2]
    small, large = found["gradient, time", "depth"]
    # Products for the forward pass and for the weights, and one for the inputs of every layer but the first.
    assert (small.work, large.work) == (2 * 2 * 64**3, 5 * 2 * 64**3)
    small, large = found["update, donated, memory", "leaves"]
    assert large.exponent == pytest.approx(1, rel=1e-2)
    assert large.cost == pytest.approx(4 * 4 * 4 * 32 * 32 / 2**20, rel=1e-2)  # model, moments and gradients


@pytest.mark.slow
def test_compiled_functions_are_cases_of_scaling():
    step = scaling_cases.jitted_step(1)
    case = scaling_cases.inference(batch=1, width=8, repeats=1)
    assert len(step.first) == 2
    assert len(case.first) == 1
    assert case.work == 2 * 2 * 9 * 8 * 8 * 32 * 32
    for call in (step.ours, step.theirs, case.ours, case.theirs, scaling_cases.jitted_call(3).ours):
        call()


# -- what is kept


def measure(path, name, values, finished=True):
    """A run of a benchmark, of which each row is a name and the time of ours."""
    results = Results(path)
    results.start(name, MACHINE)
    for row, ours in values.items():
        results.add(name, Row(row, "torch", 1, ours, 1.0, 1.0).as_dict())
    if finished:
        results.finish(name)
    return results


def times(path):
    return {(row["benchmark"], row["name"]): row["ours"] for row in Results(path).rows}


def test_results_come_back_from_json_and_other_names_are_kept(tmp_path):
    path = tmp_path / "rows.json"
    measure(path, "jit", {"a": 1.0, "b": 2.0})
    results = measure(path, "data", {"a": 3.0})
    assert Results(path).rows == results.rows
    assert Results(path).runs == {"jit": MACHINE, "data": MACHINE}
    assert times(path) == {("jit", "a"): 1.0, ("jit", "b"): 2.0, ("data", "a"): 3.0}
    assert [row["name"] for row in results.of(["jit"])] == ["a", "b"]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


def test_a_run_replaces_its_rows_once_it_is_through(tmp_path):
    path = tmp_path / "rows.json"
    measure(path, "jit", {"a": 1.0, "b": 2.0})
    measure(path, "jit", {"a": 5.0}, finished=False)
    assert times(path) == {("jit", "a"): 5.0, ("jit", "b"): 2.0}
    measure(path, "jit", {"a": 6.0, "c": 7.0})
    assert times(path) == {("jit", "a"): 6.0, ("jit", "c"): 7.0}


@pytest.mark.parametrize("text", ["{", "[]", '{"machine": "x", "rows": []}', '{"runs": {}, "rows": [{}]}'])
def test_a_file_that_holds_no_results_is_refused_and_stays(text, tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(SystemExit):
        command.main(["flatten", "--json", str(path)])
    assert "is no file that python -m benchmarks --json wrote" in capsys.readouterr().err
    assert path.read_text() == text


def test_the_machine_is_described():
    assert MACHINE["cores"] >= 1
    assert MACHINE["threads"] == torch.get_num_threads()
    assert MACHINE["versions"]["torch"] == torch.__version__
    assert MACHINE["date"][:2] == "20"
    assert json.loads(json.dumps(MACHINE)) == MACHINE
    assert f"{MACHINE['cores']} cores" in machine.sentence(MACHINE)


# -- the command


def test_an_unknown_name_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        command.main(["flattening"])
    assert "no benchmark 'flattening'; choose from gradient, layers" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [["--draw", "none.json", "--picture", "p.png"], ["--draw", __file__]])
def test_drawing_takes_a_file_with_rows_and_a_picture(missing, capsys):
    with pytest.raises(SystemExit):
        command.main(missing)
    assert "--draw takes a file with rows and --picture FILE" in capsys.readouterr().err


def test_one_name_runs_here_and_is_written(hurried, tmp_path, capsys):
    hurried("flatten")
    path = tmp_path / "rows.json"
    assert command.main(["flatten", "--json", str(path)]) == 0
    assert [row["name"] for row in Results(path).rows] == ["flatten, a node", "unflatten, a node"]
    assert "flatten, a node" in capsys.readouterr().out


def test_several_names_run_in_processes_of_their_own_and_those_that_fail_are_named(
    monkeypatch, tmp_path, capsys
):
    commands = []

    def run(command, check):
        commands.append(command)
        return SimpleNamespace(returncode=int(command[-1] == "data"))

    monkeypatch.setattr(subprocess, "run", run)
    path = tmp_path / "rows.json"
    assert command.main(["flatten", "data", "memory", "--json", str(path)]) == 1
    assert [c[-2:] for c in commands] == [[str(path), name] for name in ("flatten", "data", "memory")]
    assert "these failed: data" in capsys.readouterr().err


def test_pictures_of_a_stored_file_are_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "rows.json"
    results = measure(path, "jit", {"a": 0.5, "b": 20.0})
    for threads, target in ((1, None), (2, None)):
        results.add("jit", Row("c", "torch", threads, 0.3, 1.0, target).as_dict())
    results.start("scaling", MACHINE)
    curve = scaling.Curve("x", "n", (1, 2, 4), lambda n: None)
    work = [1.0, 2.0, 4.0], "leaves"
    for p in scaling.points(curve, "time", "s", work, [[1.0, 4.0, 8.0]], [[1.0, 2.0, 3.0]]):
        results.add("scaling", p.as_dict())
    for p in scaling.points(curve, "beyond torch", "s", work, [[1.0, 0.0, -8.0]]):
        results.add("scaling", p.as_dict())
    for suffix in (".png", ".svg"):
        picture = tmp_path / f"speed{suffix}"
        assert command.main(["--draw", str(path), "--picture", str(picture)]) == 0
        said = capsys.readouterr().out
        for drawn in (picture, tmp_path / f"speed_scaling{suffix}"):
            assert drawn.stat().st_size > 10_000
            assert f"drawn: {drawn}" in said
    one = tmp_path / "one.png"
    assert command.main(["scaling", "--draw", str(path), "--picture", str(one)]) == 0
    assert not one.exists()
    assert (tmp_path / "one_scaling.png").exists()
    assert Results(path).rows == results.rows  # drawing measures nothing
