"""The wheel, installed and used in an empty folder; and the notebook of examples."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
from hydra import compose
from nbclient import NotebookClient

from irattack.commands.composing import hydra
from irattack.commands.settings import register_resolvers
from irattack.pipeline.artifact import commit
from irattack.pipeline.cell import Cell

ROOT = Path(__file__).parents[1]
TINY = ["images=8", "steps=2", "threads=1", "benchmark.sources=[resnet34]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the packages of this one behind it."""
    folder = tmp_path_factory.mktemp("package")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    venv.create(folder / "venv", with_pip=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    packages = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "behind.pth").write_text("\n".join(packages))
    wheel = next(folder.glob("*.whl"))
    pip = [
        str(folder / "venv/bin/python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((site / "irattack").glob("conf/*"))
    return folder / "venv"


def run(installed: Path, folder: Path, *words: str, status: int = 0) -> str:
    """What the installed `irattack` prints in a folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(installed / "bin/irattack"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    if status:
        assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr if status else done.stdout


def test_the_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert re.search(r"^hybridir +HybridIR: every", run(installed, tmp_path, "ls", "attacks"), re.M)
    assert "Usage: irattack" in run(installed, tmp_path, "--help")
    assert not list(tmp_path.iterdir())
    mistake = run(installed, tmp_path, "reproduce", "table9", status=2)
    assert mistake.startswith("irattack: table=table9: did you mean table")

    cell = ["attack=ir", "source=resnet34", "targets=secured", *TINY]
    out = run(installed, tmp_path, *cell)
    assert out.count("resnet34") == 3
    card = json.loads(next(tmp_path.glob("outputs/photos/results/*/*_ens3-*.json")).read_text())
    assert card["made_with"]["commit"] == "unknown (version 0.1.0 as installed)"
    register_resolvers()
    with hydra():
        here = Cell(compose("config", overrides=cell))
    assert card["facts"]["key"] == here.key  # the same name as from a checkout
    settings = ["source=resnet34", *TINY]
    out = run(installed, tmp_path, "reproduce", "table2", *settings)
    tables = sorted(tmp_path.glob("outputs/photos/tables/*.csv"))
    assert len(tables) == 2  # rates and gains
    assert all(path.name in out for path in tables)
    rows = tables[0].read_text().splitlines()
    assert sum("tiir" in row for row in rows) == 3  # on the three secured networks
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_the_commit_is_that_of_the_project_alone(tmp_path: Path) -> None:
    """Not of a repository that has the package somewhere inside."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    for folder in ("irattack", "lib/irattack"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("")
    assert commit(tmp_path / "irattack") == "unknown"
    git("init", "--quiet")
    git("add", "-A")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path / "irattack") == head
    assert commit(tmp_path / "lib/irattack") == "unknown"
    (tmp_path / "irattack" / "a.py").write_text("changed")
    assert commit(tmp_path / "irattack") == f"{head}+"


@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix) / "share" / "jupyter"))
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}})
    client.execute()
    printed = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    assert any("% transfer, average interaction" in text for text in printed)
    assert not list(tmp_path.iterdir())
