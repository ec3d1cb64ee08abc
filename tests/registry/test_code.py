"""The archive of a version's code: one spelling, nothing but the user's files, and loaded apart from all other code."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ct.errors import Corrupt, InvalidPipeline
from ct.features.declare import own_features
from ct.ids import sha256
from ct.registry import code
from ct.registry.code import Code
from ct.training.code import code_of

PIPELINE = """
from __future__ import annotations

from dataclasses import dataclass

import ct
import numpy as np
from near import LIMIT, grown
from parts import shapes


@dataclass(frozen=True)
class Step:
    by: float = 1.0


@ct.feature("x")
def grown_x(x):
    from later import half

    return half(grown(x)) + LIMIT + Step().by + shapes.SIDES


trips = ct.Table("trips", key="trip", time="leaves")
pipeline = ct.Pipeline(
    name="tiny", table=trips, label=ct.Label("late", above=0, known_at="arrives"), features=[grown_x],
    model=ct.Torch("MLP"), gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)]), rollout=ct.Canary(100),
)
"""


def write(folder: Path, *, by: float = 2.0) -> Path:
    """A pipeline file with modules beside it, and much that is none of its code."""
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "shapes.py").write_text("from .sides import SIDES\n")
    (folder / "parts" / "sides.py").write_text("SIDES = 100.0\n")
    (folder / "near.py").write_text(f"import numpy as np\n\nLIMIT = 10.0\n\n\ndef grown(x):\n    return x * {by}\n")
    (folder / "later.py").write_text("def half(x):\n    return x / 2\n")
    (folder / "secrets.py").write_text("KEY = 'hidden'\n")
    (folder / "unused.py").write_text("raise SystemExit\n")
    (folder / ".env").write_text("KEY=hidden\n")
    (folder / "ct.toml").write_text('webhook = "hidden"\n')
    (folder / "mine.py").write_text(PIPELINE)
    return folder / "mine.py"


def archive(file: Path) -> bytes:
    """The archive of a pipeline file whose model is a ready one."""
    return code_of(None, file).to_bytes()


def answer(data: bytes) -> float:
    """What the archived feature makes of 3.0."""
    line = code.loaded(data)
    assert line is not None
    return float(own_features(line.features)["grown_x"](np.array([3.0]))[0])


def test_it_holds_what_the_pipeline_imports_and_nothing_else(tmp_path: Path) -> None:
    found = Code.from_bytes(archive(write(tmp_path / "a")))
    assert sorted(found.files) == [
        "0/later.py", "0/mine.py", "0/near.py", "0/parts/__init__.py", "0/parts/shapes.py", "0/parts/sides.py",
    ]  # fmt: skip
    assert (found.main, found.variable) == ("0/mine.py", "pipeline")


def test_equal_files_give_equal_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    first = archive(write(tmp_path / "a"))
    import os

    other = write(tmp_path / "elsewhere" / "b")
    os.utime(other, (0, 0))
    assert archive(other) == first
    (other.parent / "near.py").write_text("LIMIT = 1\n")
    assert sha256(archive(other)) != sha256(first)


def test_two_versions_of_the_same_modules_live_side_by_side(tmp_path: Path) -> None:
    before = dict(sys.modules)
    one, two = archive(write(tmp_path / "a", by=2.0)), archive(write(tmp_path / "b", by=4.0))
    assert answer(one) == 3.0 * 2 / 2 + 10 + 1 + 100
    assert answer(two) == 3.0 * 4 / 2 + 10 + 1 + 100
    assert answer(one) == 3.0 * 2 / 2 + 10 + 1 + 100, "the later one changes nothing"
    for name in ("mine", "near", "later", "parts", "parts.shapes"):
        assert sys.modules.get(name) is before.get(name)


def test_a_module_of_todays_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive(write(tmp_path / "a"))
    today = tmp_path / "today"
    today.mkdir()
    for name in ("near", "later"):
        (today / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.syspath_prepend(str(today))
    assert answer(data) == 114.0


def test_its_functions_have_the_hash_that_the_working_copy_gave(tmp_path: Path) -> None:
    """A model's spec names a function by its source; the archive must give the very same."""
    file = write(tmp_path / "a")
    script = f"from ct.pipeline import load; print(load({str(file)!r}).features[0].source)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    line = code.loaded(archive(file))
    assert line is not None
    assert line.features[0].source == done.stdout.strip()  # type: ignore[attr-defined]


def test_code_that_cannot_run_here_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "a")
    file.write_text(PIPELINE + "import a_package_nobody_has\n")
    with pytest.raises(Corrupt, match="a_package_nobody_has"):
        code.loaded(archive(file))
    file.write_text("nothing = 1\n")
    with pytest.raises(Corrupt, match=r"no ct\.Pipeline"):
        code.loaded(archive(file))


def test_a_module_of_it_is_had_by_name_the_same_that_the_pipeline_uses(tmp_path: Path) -> None:
    data = archive(write(tmp_path / "a"))
    line = code.loaded(data)
    assert line is not None
    assert code.named(data, "mine", "pipeline") is line
    assert code.named(data, "parts.sides", "SIDES") == 100.0
    assert code.named(data, "mine", "Step.__name__") == "Step"
    assert code.named(data, "near", "LIMIT") == 10.0
    assert "parts.sides" not in sys.modules
    assert code.named(data, "pathlib", "Path") is Path, "what is no part of it is what is installed here"
    for module, name in (("near", "nothing"), ("nowhere", "x"), ("parts.nothing", "x")):
        with pytest.raises(Corrupt, match="cannot be run here"):
            code.named(data, module, name)


def test_a_module_that_broke_off_is_not_gone_on_with(tmp_path: Path) -> None:
    file, sign = write(tmp_path / "a"), tmp_path / "sign"
    (tmp_path / "a" / "near.py").write_text(f"LIMIT = 1.0\nopen({str(sign)!r})\n")
    data = archive(file)
    for _ in range(2):
        with pytest.raises(Corrupt, match="FileNotFoundError"):
            code.named(data, "near", "LIMIT")
        assert "near" not in sys.modules
    sign.touch()
    assert code.named(data, "near", "LIMIT") == 1.0


def test_too_much_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a")
    file.write_text(PIPELINE + "#" * code.MOST_BYTES)
    with pytest.raises(InvalidPipeline, match="keep data out"):
        archive(file)


@pytest.mark.parametrize("name", ["../x.py", "0/../../x.py", "/x.py", "0/x.sh", "x.py", "0//x.py"])
def test_an_archive_with_odd_names_is_refused(name: str) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        made.writestr("code.json", '{"format":1,"main":"","variable":"pipeline"}')
        made.writestr(name, "")
    with pytest.raises(Corrupt):
        Code.from_bytes(target.getvalue())


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip"])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Code.from_bytes(data)


def test_a_link_that_leads_out_of_the_folder_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "a")
    (tmp_path / "outside.py").write_text("SECRET = 1\n")
    (file.parent / "linked.py").symlink_to(tmp_path / "outside.py")
    file.write_text(PIPELINE + "import linked\n")
    assert "0/linked.py" not in Code.from_bytes(archive(file)).files


def test_nothing_compressed_is_unpacked() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0/a.py", b"x = 1\n" * 1000)
        archive.writestr("code.json", b'{"format": 1, "main": "0/a.py", "variable": "pipeline"}')
    with pytest.raises(Corrupt, match="compressed"):
        Code.from_bytes(target.getvalue())
