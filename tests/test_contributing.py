"""The worked example of CONTRIBUTING.md, run as written in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from irattack.models import zoo

ROOT = Path(__file__).parents[1]


def test_the_example_runs_as_written(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in ("irattack", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    files = re.findall(r"```(?:python|yaml)\n(# (\S+)\n.*?)```", text, re.S)
    assert [name for _, name in files] == [
        *("scaling.py", "conf/attack/si.yaml", "conf/model/imagenet/mine.yaml")
    ]
    for content, name in files:
        (tmp_path / name).write_text(content)
    mine = OmegaConf.load(tmp_path / files[-1][1])
    known = (
        zoo.card("imagenet", "resnet34").keys() | zoo.card("imagenet", "inception_v3_ens3").keys()
    )
    assert mine.keys() <= known
    assert mine.skip == {"branches": r"layer\d+\.\d+\.bn2$", "gamma": 0.2}
    (command,) = re.findall(r"```sh\npython (.*?)\n```", text, re.S)
    for extra in ([], ["+piece=[ir]"]):
        done = subprocess.run(
            [sys.executable, *command.split(), *extra, "threads=1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"resnet34\s+\S+\s+linf\s+vgg16\s+16\s+[\d.]+", done.stdout)
