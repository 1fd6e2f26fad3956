"""`irattack --help`, `ls`, `validate` and completion: what there is, and what is wrong with it."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from irattack import __main__ as entry
from irattack.commands import completion, ls, validate
from irattack.commands.composing import composed, hydra
from irattack.commands.help import COMMANDS, EXAMPLES, WIDTH, of_command, overview, settings
from irattack.commands.plans import plan
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF, OWN, yamls
from irattack.errors import InputError
from irattack.models import zoo
from irattack.pipeline.cell import Cell


def test_every_setting_has_a_meaning() -> None:
    told = dict(settings())
    keys = OmegaConf.load(CONF / "config.yaml").keys() - {"defaults", "hydra", "cache"}
    assert told.keys() == keys | {"cache.steps"}
    assert all(told.values())
    text = overview()
    assert max(map(len, text.splitlines())) <= WIDTH
    for name in [*told, *COMMANDS, *yamls("attack").keys() - {"base"}, *yamls("piece")]:
        assert name in text


def test_every_command_says_what_it_does(capsys: pytest.CaptureFixture) -> None:
    for name in COMMANDS:
        text = of_command(name)
        assert text.startswith(f"Usage: irattack {name} ")
        assert len(text.splitlines()) > 5
    for words, first in (
        (["reproduce", "--help"], "Usage: irattack reproduce TABLE"),
        (["help", "ls"], "Usage: irattack ls [KIND]"),
        (["attack=ir", "-h"], "irattack: does"),
        (["--version"], "irattack 0.1.0, commit "),
    ):
        sys.argv = ["irattack", *words]
        entry.main()
        assert capsys.readouterr().out.startswith(first)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reproduce", "table1", "table2"], "reproduce: table1 table2: give one name of a table"),
        (["reproduce"], "reproduce: name a table or figure: one of budget, "),
        (["images=4", "reproduce", "tabel1"], "table=tabel1: did you mean table1"),
        (["status", "tabel1"], "table=tabel1: did you mean table1"),
        (["estimate", "tabel1"], "table=tabel1: did you mean table1"),
        (["clean", "table1"], "clean table1: takes no name"),
        (["validate", "tabel1"], "table=tabel1: did you mean table1"),
    ],
)
def test_words_that_a_command_does_not_take(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["irattack", *words])
    with pytest.raises(SystemExit):
        entry.main()
    assert capsys.readouterr().err.startswith(f"irattack: {sentence}")


def test_status_of_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"output={tmp_path}", "status", "table4"]  # settings may come before a command
    monkeypatch.setattr(sys, "argv", ["irattack", *given])
    entry.main()
    heads, _, line = capsys.readouterr().out.splitlines()[-3:]
    assert heads.startswith("table or figure")
    assert line.startswith("table4")


def test_the_examples_of_help_compose() -> None:
    register_resolvers()
    assert len(EXAMPLES) == 5
    for call, _ in EXAMPLES:
        program, *words = shlex.split(call)
        assert program == "irattack"
        command = words.pop(0) if words[0] in COMMANDS else None
        with hydra():
            if command:
                assert plan(words[0], words[1:]).cells
            else:
                given = [word for word in words if word[0] != "-"]
                first = [word if "[" in word else word.split(",")[0] for word in given]
                assert Cell(composed(first))


def test_ls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN, str(tmp_path))
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text("# Of my own.\ndefaults: [base]\nname: mine\n")
    assert re.search(r"(?m)^mine +Of my own\.$", ls.ls("attacks", []))
    for kind in ls.KINDS:
        lines = ls.ls(kind, []).splitlines()
        assert all(len(line.split()) > 1 for line in lines if line), kind  # each says something
    assert "Table 1: success" in ls.ls("tables", [])
    assert re.search(r"(?m)^\+jpeg +number: quality, 1 to 100 +JPEG", ls.ls("defences", []))
    kinds = dict(line.split(maxsplit=1) for line in ls.everything([]).splitlines())
    assert kinds.keys() == ls.KINDS.keys()
    assert {"pgd", "hybridir"} < {*kinds["attacks"].split()}
    assert kinds["models"].split() == zoo.names("photos")
    assert "densenet121.tv_in1k" in ls.ls("models", ["benchmark=nips2017"])


def test_validate_names_all_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    own = tmp_path / "conf" / "model" / "photos"
    own.mkdir(parents=True)
    (own / "odd.yaml").write_text("factory: nowhere.make\nweights: odd.pth\n")
    (own / "none.yaml").write_text("factory: irattack.models.small.alexnet\n")
    monkeypatch.setenv(OWN, str(tmp_path / "conf"))
    monkeypatch.setattr(zoo, "_card", zoo._card.__wrapped__)
    monkeypatch.chdir(tmp_path)
    given = ["targets=[odd,none,vgg16]", "images=1000", "attack=ir", "steps=3", "source=vgg16"]
    sys.argv = ["irattack", *given, "benchmark.sources=[vgg16]"]
    with pytest.raises(SystemExit, match="2"):
        validate.main()
    out, err = capsys.readouterr()
    wrong = [line.split(":")[0] for line in out.splitlines() if "WRONG" in line]
    assert wrong == ["odd", "none", "images"]
    assert "images=1000: there are only 699; use images=699." in out
    assert err == "irattack: 3 things marked WRONG above; mend that and validate again.\n"
    assert "passes" not in out
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_validate_a_table_that_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    few = ["source=resnet34", "attack=pgd,sgm", "targets=[alexnet]", "benchmark.sources=[alexnet]"]
    found = validate.validate("table4", [*few, "images=4"], ["hydra/launcher=joblib"])
    assert found.wrong == []
    parts = [line.split(":")[0] for line in found.lines[:-2]]
    assert parts == ["launcher", "alexnet", "resnet34", "cells", "images", "output"]
    assert "Results to be made: 4." in found.lines[-1]  # two jobs of two cells
    one = ["attack=ir", "source=vgg16", "targets=[alexnet,vgg16]", "benchmark.sources=[alexnet]"]
    found = validate.validate(None, [*one, "images=9", "steps=3"], [])
    # K = 8: x + δ once for the loss and v(Λ), and two sets a sample
    passes = rf"{9 * 3 * 17} +{9 * 3 * 2}"
    assert re.search(rf"ir +vgg16 +linf +0\.3 +9 +3 +{passes} +0 of 2", found.lines[-1])
    with pytest.raises(InputError, match="did you mean table4"):
        validate.validate("tabel4", [], [])


@pytest.mark.parametrize(
    ("typed", "printed", "left"),
    [
        ("irattack repro", "reproduce", "irattack repro"),
        ("irattack reproduce table", "table1 table2 table3 table4", None),
        ("irattack ls att", "attacks", None),
        ("irattack reproduce table1 norm=", "", "irattack norm="),
        ("irattack attack=ir sou", "", "irattack attack=ir sou"),
        ("irattack status so", "", "irattack so"),
        ("irattack status conf", "confident", None),
        ("irattack reproduce so", "", None),
    ],
)
def test_completion(
    typed: str,
    printed: str,
    left: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("COMP_LINE", typed)
    if left is None:
        with pytest.raises(SystemExit, match="0"):
            completion.complete()
    else:
        completion.complete()
        assert completion.os.environ["COMP_LINE"] == left
    assert capsys.readouterr().out.split() == printed.split()
