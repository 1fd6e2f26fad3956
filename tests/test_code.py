"""What a yaml names is known by its source."""

import sys
from pathlib import Path

import pytest

from irattack.code import code_of, source


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that imports another, and a package, in a folder that Python searches."""
    (tmp_path / "scaling.py").write_text("import torch\nimport helper\n\ndef dim(x): return x\n")
    (tmp_path / "helper.py").write_text("FACTOR = 2\n")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").write_text("raise RuntimeError('nothing is imported')\n")
    (tmp_path / "nets" / "small.py").write_text("def make(classes): return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def facts(name: str) -> dict:
    return {"transform": {"_target_": "hydra.utils.get_method", "path": name}, "list": [1]}


def test_an_edit_of_the_function_or_of_what_it_imports_changes_its_code(own: Path) -> None:
    first = code_of(facts("scaling.dim"))
    assert set(first) == {"scaling.py", "helper.py"}
    assert code_of(facts("scaling.dim")) == first
    for name in ("scaling.py", "helper.py"):
        path = own / name
        path.write_text(path.read_text() + "# edited\n")
        second = code_of(facts("scaling.dim"))
        assert [file for file in second if second[file] != first[file]] == [name]
        first = second
    assert "scaling" not in sys.modules


def test_modules_of_packages_are_found_without_importing_them(own: Path) -> None:
    assert source("nets.small.make") == own / "nets" / "small.py"
    assert "small.py" in code_of({"factory": "nets.small.make"})


def test_what_ships_with_irattack_or_names_nothing_has_no_code() -> None:
    assert code_of({"_target_": "irattack.attacks.norms.Linf", "path": "nowhere.at.all"}) == {}
    assert set(code_of({"factory": "timm.models.resnet.resnet18"})) == {"resnet.py"}
