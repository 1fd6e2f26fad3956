"""What there is to call, and `irattack --help`: commands, settings with their meaning, examples.

A setting's meaning is the comment beside it in conf/config.yaml; that of a command is its module's
docstring. No other module is imported here, so that help comes at once.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from irattack.conf import CONF, yamls

WIDTH = 100


@dataclass(frozen=True)
class Command:
    """A command: the function that does it, its arguments, and what it is for."""

    module: str
    function: str
    arguments: str
    summary: str


SETTINGS = "[name=value …]"
COMMANDS = {
    "run": Command("irattack.commands.run", "main", SETTINGS, "one cell; the word may be left out"),
    "reproduce": Command(
        "irattack.commands.reproduce",
        "main",
        f"TABLE {SETTINGS}",
        "a table or figure: runs what it lacks, then makes it",
    ),
    "aggregate": Command(
        "irattack.commands.reproduce",
        "aggregate",
        f"TABLE {SETTINGS}",
        "the same from the disk alone, nothing is run",
    ),
    "submit": Command(
        "irattack.commands.submit",
        "main",
        f"TABLE {SETTINGS}",
        "leaves it to Slurm and returns; a dependent job makes the table",
    ),
    "accuracy": Command(
        "irattack.commands.accuracy", "main", SETTINGS, "of every network on the clean images"
    ),
    "export": Command(
        "irattack.commands.export",
        "main",
        f"FOLDER [STEP] {SETTINGS}",
        "a cell's adversarial images as PNG files, for other tools",
    ),
    "evaluate": Command(
        "irattack.commands.evaluate",
        "main",
        f"FOLDER {SETTINGS}",
        "the success of images that another tool has made",
    ),
    "validate": Command(
        "irattack.commands.validate",
        "main",
        f"[TABLE] {SETTINGS}",
        "checks settings, images and networks, and says what would run",
    ),
    "ls": Command("irattack.commands.ls", "main", f"[KIND] {SETTINGS}", "what there is of a kind"),
    "report": Command(
        "irattack.commands.report", "main", SETTINGS, "one page of all that is on the disk"
    ),
    "status": Command(
        "irattack.commands.status",
        "main",
        f"[TABLE] {SETTINGS}",
        "what of every table is done, and its size",
    ),
    "estimate": Command(
        "irattack.commands.estimate",
        "main",
        f"[TABLE] {SETTINGS}",
        "hours and disk that every table takes here",
    ),
    "gpu": Command(
        "irattack.commands.gpu", "main", SETTINGS, "what a machine with a GPU has to prove"
    ),
    "bench": Command(
        "irattack.commands.bench", "main", SETTINGS, "times the attack against the device's limit"
    ),
    "clean": Command(
        "irattack.commands.status", "clean", SETTINGS, "removes what no table or figure needs"
    ),
    "convert": Command(
        "irattack.commands.convert",
        "main",
        "FILE.npy OUT.safetensors",
        "published weights of the secured networks as safetensors",
    ),
}
EXAMPLES = [
    ("irattack attack=ir source=densenet121 norm=l2 'targets=[vgg16,resnet152]'", "one cell"),
    ("irattack -m attack=ir lam=0,0.5,1,2 source=resnet34,densenet121", "each combination"),
    ("irattack attack=pgd '+piece=[mi,ir]' images=32", "an attack composed of pieces"),
    ("irattack reproduce table1 images=64 seed=1", "a table, the paper's numbers beside"),
    ("irattack validate table2 images=1000", "what is wrong with it, before it runs"),
]
HYDRA = [
    ("-m, --multirun", "once for each combination of values with commas"),
    ("--cfg job", "show every setting, with its value"),
    ("--config-dir=FOLDER", "yamls of your own, in folders as in conf: attack/, table/, model/…"),
    ("-sc install=bash", 'completion, for bash: eval "$(irattack -sc install=bash)"'),
    ("--hydra-help", "further flags, which are Hydra's"),
    ("--version", "the version, and the commit of a checkout"),
]
GROUPS = {
    "attack": "a named attack",
    "norm": "of the ball: linf, ‖δ‖∞ ≤ eps; l2, ‖δ‖₂ ≤ eps·√n",
    "protocol": "the paper's text, or what the authors' code does where it differs",
    "benchmark": "images, networks, and the numbers that other settings have by default",
}


def settings() -> Iterator[tuple[str, str]]:
    """The settings of conf/config.yaml and the comments beside them, in its order."""
    outer = ""
    for line in (CONF / "config.yaml").read_text("utf-8").split("\nhydra:")[0].splitlines():
        found = re.match(r"( *)(\w+):([^#]*)(?:# (.*))?$", line)
        if found is None or found[2] == "defaults":
            continue
        indent, name, value, comment = found.groups()
        outer = outer if indent else name
        if comment or value.strip():
            yield (f"{outer}.{name}" if indent else name), comment or ""


def rows(pairs: list[tuple[str, str]], gap: int) -> str:
    """Two columns, the second wrapped."""
    lines = []
    for left, right in pairs:
        wrapped = textwrap.wrap(right, WIDTH - gap - 2) or [""]
        first = [f"  {left:<{gap - 2}}{wrapped[0]}".rstrip()]
        if len(left) > gap - 4:
            first, wrapped = [f"  {left}"], ["", *wrapped]
        lines += [*first, *(" " * gap + more for more in wrapped[1:])]
    return "\n".join(lines)


def overview() -> str:
    """`irattack --help`."""
    calls = [
        (f"{name} {command.arguments.replace(f' {SETTINGS}', '').replace(SETTINGS, '')}", command)
        for name, command in COMMANDS.items()
    ]
    groups = [
        (f"{name}=", f"{meaning}; one of {' '.join(n for n in yamls(name) if n != 'base')}")
        for name, meaning in GROUPS.items()
    ]
    groups.insert(1, ("+piece=[…]", f"pieces that an attack gets: {' '.join(yamls('piece'))}"))
    examples = "\n".join(f"  {call}\n      {what}" for call, what in EXAMPLES)
    return f"""\
irattack: does an adversarial perturbation transfer because its pixels interact little?
Reproduces "A Unified Approach to Interpreting and Boosting Adversarial Transferability" (ICLR
2021), and measures attacks, networks and images of your own in the same way.

Usage: irattack [COMMAND] {SETTINGS}

Examples:
{examples}

Commands (`irattack COMMAND --help` says more):
{rows([(call, command.summary) for call, command in calls], 36)}

Settings, as name=value:
{rows(groups, 18)}
{rows([(f"{name}=", meaning) for name, meaning in settings()], 18)}

Flags:
{rows(HYDRA, 24)}

In Python: from irattack import attack, models, interactions, success
"""


def of_command(name: str) -> str:
    """`irattack COMMAND --help`."""
    command = COMMANDS[name]
    spec = find_spec(command.module)
    assert spec is not None
    assert spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""
    usage = f"Usage: irattack {name} {command.arguments}"
    return f"{usage}\n\n{name}: {command.summary}.\n\n{text}\n\n`irattack --help` lists settings.\n"
