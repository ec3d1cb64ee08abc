"""Which files are a model's code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from ct.training.code import code_of, home_of, source_folder
from ct.training.declare import Torch
from delay_model import DelayNet


def test_a_model_in_a_package_elsewhere_goes_with_the_packages_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, lib = tmp_path / "home", tmp_path / "lib"
    (lib / "nets" / "deep").mkdir(parents=True)
    home.mkdir()
    for name in ("nets/__init__.py", "nets/deep/__init__.py", "nets/other.py"):
        (lib / name).write_text("")
    (lib / "nets" / "deep" / "net.py").write_text("from ..layers import Layer\n\n\nclass Net(Layer): ...\n")
    (lib / "nets" / "layers.py").write_text("class Layer: ...\n")
    (home / "line.py").write_text("import ct\nfrom nets.deep.net import Net\n")
    monkeypatch.syspath_prepend(str(lib))
    module = importlib.import_module("nets.deep.net")
    try:
        found = code_of(Torch(module.Net), home / "line.py", "mine")
        assert source_folder(module.Net) == lib
        assert (found.main, found.variable) == ("0/line.py", "mine")
        assert sorted(found.files) == [
            "0/line.py", "1/nets/__init__.py", "1/nets/deep/__init__.py", "1/nets/deep/net.py", "1/nets/layers.py",
        ]  # fmt: skip
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "nets"]:
            del sys.modules[name]


def test_ready_models_and_installed_packages_are_no_code_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "line.py").write_text("import json\n\nimport ct\nimport numpy as np\nimport torch.nn\n")
    assert sorted(code_of(Torch("MLP"), tmp_path / "line.py").files) == ["0/line.py"]
    assert code_of(Torch("MLP")).files == {}


def test_a_model_without_a_pipeline_file_is_its_module() -> None:
    found = code_of(Torch(DelayNet))
    assert (sorted(found.files), found.main) == (["0/delay_model.py"], "")


def test_a_pipeline_is_found_in_the_file_that_makes_it() -> None:
    import flights

    file, name = home_of(flights.pipeline) or (Path(), "")
    assert (file.name, name) == ("flights.py", "pipeline")
    assert {"0/flights.py"} <= set(code_of(flights.pipeline.model, file, name).files)
    assert home_of(flights.pipeline.replace(owner="another")) is None
