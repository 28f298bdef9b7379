"""``python -m fluxlike``: exit codes, problems in a line, what `info` finds."""

import io
import json
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fluxlike as fl
from fluxlike.command import info
from fluxlike.command.main import main
from fluxlike.command.printing import Line, show

ROOT = Path(fl.__file__).parents[1]


def process(*arguments, **options):
    command = [sys.executable, "-m", "fluxlike", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def test_a_process_tells_its_versions_and_does_not_import_what_it_lists():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['fluxlike', 'info', '--json']\n"
        "try: runpy.run_module('fluxlike', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torchmetrics', 'matplotlib', 'tensorboard', 'PIL', 'jax', 'pandas', 'torchvision'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads(run.stdout)
    assert found["fluxlike"]["version"] == fl.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["numpy"] == metadata.version("numpy")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "the following arguments are required: COMMAND"),
        (("bake",), 2, "invalid choice: 'bake'"),
        (("info", "--jsn"), 2, "unrecognized arguments: --jsn"),
        (("summary",), 2, "the following arguments are required: FILE"),
        (("summary", "x", "--depth", "0"), 2, "'0' is no whole number of at least 1"),
        (("summary", "x", "--depth", "2", "--json"), 2, "not allowed with argument"),
        (("train",), 2, "the following arguments are required: CONFIG.toml"),
        (("predict", "x"), 2, "the following arguments are required: INPUT"),
        (("predict", "x", "y", "--top", "0"), 2, "'0' is no whole number of at least 1"),
        (("predict", "x", "y", "--csv", "z", "--json"), 2, "not allowed with argument"),
    ],
)
def test_arguments_that_are_not_understood_are_usage_errors(capsys, arguments, code, text):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code
    assert text in capsys.readouterr().err


def test_help_teaches_codes_and_examples(capsys):
    for arguments in (["--help"], *([name, "--help"] for name in ("info", "summary", "train", "predict"))):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    text = capsys.readouterr().out
    assert "130  interrupted" in text
    assert "python -m fluxlike summary model.safetensors --depth 2" in text


def test_a_problem_is_one_line_on_standard_error(tmp_path):
    run = process("summary", str(tmp_path / "none.pt"))
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == f"fluxlike summary: there is no file {tmp_path / 'none.pt'}\n"


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["after", "before"])
def test_a_traceback_is_there_on_request(capsys, order):
    given = [["summary", "none.pt"], ["--traceback"]][order]
    assert main([*given[0], *given[1]]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_an_error_of_another_kind_is_named(capsys, monkeypatch):
    def fail():
        raise KeyError("a\nb\x1b[31m")

    monkeypatch.setattr(info, "information", fail)
    assert main(["info"]) == 1
    err = capsys.readouterr().err
    assert err == "fluxlike info: KeyError: 'a\\nb\\x1b[31m'; --traceback shows where it came from\n"


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "information", stop)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_leaves_is_no_problem(tmp_path):
    file = tmp_path / "many.safetensors"
    fl.save(file, {f"w{i}": torch.ones(1) for i in range(3000)})
    command = [sys.executable, "-m", "fluxlike", "summary", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout.readline().startswith(str(file).encode())
        run.stdout.close()
        assert run.stderr.read() == b""
        assert run.wait(300) == 0


def test_info_says_which_device_gpu_takes(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = fl.gpu(torch.ones(1)).device.type
    found = info.information()
    assert (found["gpu"] or "cpu") == device
    assert found["devices"][0]["device"] == "cpu"
    assert main(["info"]) == 0
    assert f"torch   {torch.__version__}" in capsys.readouterr().out


class _Cards:
    """Stands for a backend with two cards."""

    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)

    class get_device_properties:
        def __init__(self, index):
            self.name, self.total_memory = f"Card {index}", 80 * 2**30


def test_info_lists_every_card_with_its_memory(capsys, monkeypatch):
    monkeypatch.setattr(torch, "cuda", _Cards)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "  cuda:1  Card 1  80.000 GiB" in out
    assert "fl.gpu moves to cuda\n" in out


def test_info_names_the_extra_of_what_is_missing(capsys, monkeypatch):
    real = metadata.version

    def version(name):
        if name in ("rich", "h5py"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "; missing rich: pip install 'fluxlike[training]'" in out
    assert "hdf5      missing h5py: pip install 'fluxlike[hdf5]'" in out
    assert "no-such-compiler, which CXX names, is not there" in out


def test_the_extras_are_those_of_the_project():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in info.EXTRAS.items():
        assert {text.partition(">")[0] for text in declared[extra]} == set(packages)


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_colours_are_for_terminals_alone(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show([Line("[bold]text[/bold]", "red")])
    assert capsys.readouterr().out == "[bold]text[/bold]\n"
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show([Line("[bold]text[/bold]", "red")])
    assert "\x1b[31m[bold]text[/bold]" in terminal.getvalue()


def test_a_terminal_that_lacks_a_letter_gets_its_escape(tmp_path):
    file = tmp_path / "names.safetensors"
    fl.save(file, {"größe": torch.ones(1)})
    run = process("summary", str(file), env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert run.returncode == 0
    assert "['gr\\xf6\\xdfe']" in run.stdout
