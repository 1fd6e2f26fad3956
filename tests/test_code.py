"""What a yaml names is known by its source."""

import sys
from pathlib import Path

import pytest

from irattack.code import code_of, source
from irattack.errors import InputError


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
    assert set(first) == {"scaling", "helper"}
    assert code_of(facts("scaling.dim")) == first
    for name in ("scaling", "helper"):
        path = own / f"{name}.py"
        path.write_text(path.read_text() + "# edited\n")
        second = code_of(facts("scaling.dim"))
        assert [module for module in second if second[module] != first[module]] == [name]
        first = second
    assert "scaling" not in sys.modules


def test_modules_of_packages_are_found_without_importing_them(own: Path) -> None:
    assert source("nets.small.make") == ("nets.small", own / "nets" / "small.py")
    assert set(code_of({"factory": "nets.small.make"})) == {"nets", "nets.small"}


def test_modules_of_one_file_name_and_relative_imports_are_told_apart(own: Path) -> None:
    (own / "nets" / "small.py").write_text("from .parts import block\n")
    (own / "nets" / "parts").mkdir()
    (own / "nets" / "parts" / "__init__.py").write_text("block = 1\n")
    modules = {"nets", "nets.small", "nets.parts"}
    assert set(code_of({"factory": "nets.small.make"})) == modules
    assert set(code_of({"_target_": "hydra.utils.get_method", "_args_": ["nets.small.make"]})) == (
        modules
    )


def test_a_package_needs_no_init(own: Path) -> None:
    (own / "plain" / "deep").mkdir(parents=True)
    (own / "plain" / "deep" / "a.py").write_text("from ..b import c\nimport plain.nothing\n")
    (own / "plain" / "b.py").write_text("c = 1\n")
    assert set(code_of({"factory": "plain.deep.a.make"})) == {"plain.deep.a", "plain.b"}


def test_a_module_that_cannot_be_parsed_is_a_sentence(own: Path) -> None:
    (own / "scaling.py").write_text("def dim(:\n")
    with pytest.raises(InputError, match=r"scaling\.py: is not Python"):
        code_of(facts("scaling.dim"))


def test_what_ships_with_irattack_or_names_nothing_has_no_code() -> None:
    assert code_of({"_target_": "irattack.attacks.norms.Linf", "path": "nowhere.at.all"}) == {}
    assert set(code_of({"factory": "timm.models.resnet.resnet18"})) == {"timm.models.resnet"}
