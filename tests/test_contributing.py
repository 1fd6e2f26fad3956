"""The worked examples of CONTRIBUTING.md, run as written in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from irattack.commands.ls import said
from irattack.models import cards

ROOT = Path(__file__).parents[1]
MADE = [  # what each command prints at last
    r"resnet34\s+\S+\s+linf\s+vgg16\s+16\s+[\d.]+",
    r"Written to .*mine-images=16-steps=4\.csv",
    r"colours in outputs/photos/interactions/ir-alexnet-\S+/colours-\w+\.safetensors",
]


def test_the_examples_run_as_written(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in ("irattack", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    files = re.findall(r"```(?:python|yaml)\n(# (\S+)\n.*?)```", text, re.S)
    assert [name for _, name in files] == [
        *("scaling.py", "conf/table/mine.yaml", "colours.py", "conf/model/imagenet/mine.yaml"),
    ]
    ((dim, content),) = re.findall(r"`(conf/attack/dim\.yaml)`.*?```yaml\n(.*?)```", text, re.S)
    files.insert(0, (content, dim))
    for content, name in files:
        (tmp_path / name).write_text(content)
    assert said(tmp_path / dim) == "A copy of the image, dimmed by 2^i for a random i from 0 to 4."
    mine = OmegaConf.load(tmp_path / files[-1][1])
    assert mine.keys() <= cards.FACTS.keys()
    assert mine.skip == {"branches": r"layer\d+\.\d+\.bn2$", "gamma": 0.2}

    def run(command: str) -> str:
        done = subprocess.run(
            [sys.executable, *shlex.split(command), "threads=1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    commands = re.findall(r"```sh\npython (.*?)\n```", text, re.S)
    for command, made in zip(commands, MADE, strict=True):
        assert re.search(made, run(command))
    assert len(list(tmp_path.glob("outputs/photos/interactions/ir-alexnet-*/colours-*.json"))) == 1
    assert re.search(MADE[0], run(f"{commands[0]} +piece=[ir]"))

    function = tmp_path / "scaling.py"  # edited: the command measures it anew
    function.write_text(function.read_text().replace("images * 2", "0 * images + 2"))
    run(commands[0])
    assert len(list(tmp_path.glob("outputs/photos/results/dim-resnet34-linf-*"))) == 2


def test_the_quoted_diff_is_the_code() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    files = re.findall(r"^# (\S+)\n((?:\+.*\n)+)", diff, re.M)
    assert [name for name, _ in files] == [
        "irattack/attacks/points.py",
        *("conf/piece/ni.yaml", "conf/attack/ni.yaml"),
    ]
    for name, lines in files:
        quoted = re.sub(r"^\+", "", lines, flags=re.M)
        whole = (ROOT / name).read_text()
        assert quoted in whole if name.endswith(".py") else quoted == whole
