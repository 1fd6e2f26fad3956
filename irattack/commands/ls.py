"""The names that a setting or a command takes, with what their yamls say of them.

    irattack ls [tables|attacks|pieces|models|benchmarks|norms|protocols|defences] [name=value …]

Without a kind, the names of all kinds. Models are those of a benchmark (`irattack ls models
benchmark=imagenet`). Yamls of your own are listed with `--config-dir=FOLDER`.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tabulate import tabulate

from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.composing import benchmark
from irattack.commands.plans import definitions
from irattack.conf import yamls
from irattack.errors import InputError, unknown
from irattack.models import zoo
from irattack.models.defences import KINDS as DEFENCES
from irattack.pipeline.settings import slots

KINDS = {  # and the groups of yamls
    "tables": ("table", "figure"),
    "attacks": ("attack",),
    "pieces": ("piece",),
    "models": (),
    "benchmarks": ("benchmark",),
    "norms": ("norm",),
    "protocols": ("protocol",),
    "defences": (),
}


def ls(kind: str, overrides: list[str]) -> str:
    """A line for each name of a kind."""
    if kind not in KINDS:
        raise unknown("ls", kind, KINDS)
    if kind == "models":
        return models(benchmark(overrides))
    if kind == "defences":
        return defences()
    rows = [[name, said(path)] for name, path in listed(kind).items()]
    if kind == "pieces":  # two pieces of one slot do not go together
        filled = [", ".join(slots(path)) for path in listed(kind).values()]
        rows = [[name, slot, text] for (name, text), slot in zip(rows, filled, strict=True)]
    return aligned(rows)


def everything(overrides: list[str]) -> str:
    """A line for each kind, with the names of it."""
    names: dict[str, Iterable[str]] = {kind: listed(kind) for kind in KINDS if KINDS[kind]}
    names |= {"models": zoo.names(benchmark(overrides)), "defences": DEFENCES}
    return aligned([[kind, " ".join(names[kind])] for kind in KINDS])


def listed(kind: str) -> dict[str, Path]:
    """The yamls of a kind, by name."""
    paths = definitions() if kind == "tables" else yamls(*KINDS[kind])
    return {name: path for name, path in sorted(paths.items()) if name != "base"}


def said(path: Path) -> str:
    """What a yaml says it is: its title, else its first line of comment."""
    text = path.read_text("utf-8")
    title = re.search(r"""^title:\s*(["']?)(.*)\1\s*$""", text, re.M)
    comment = re.match(r"(?:# @package.*\n)?# (.*)", text)
    return title[2] if title else comment[1] if comment else ""


def models(of: str) -> str:
    """The networks of a benchmark, what each is, its λ and γ, and the sets that name several."""
    if of not in yamls("benchmark"):
        raise unknown("benchmark", of, yamls("benchmark"))
    rows = []
    for name in zoo.names(of):
        facts = zoo.card(of, name)
        kinds = [kind for kind in ("timm", "torchvision", "factory") if kind in facts]
        is_ = f"{kinds[0]} {facts[kinds[0]]}" if kinds else f"mean of {' '.join(facts['members'])}"
        rows.append([name, is_, facts.get("lam"), (facts.get("skip") or {}).get("gamma")])
    definition: Any = OmegaConf.load(yamls("benchmark")[of])
    lines = [
        f"{setting}{name}: {' '.join(members)}"
        for setting, sets in (("source of a table, ", "source_sets"), ("targets=", "target_sets"))
        for name, members in (definition.get(sets) or {}).items()
    ]
    if definition.get("any_timm_model"):
        lines.append("Any other ImageNet-1k model of timm is known by its timm name.")
    table = tabulate(rows, ["model", "network", "λ", "γ of SGM"], missingval="–")
    return "\n".join([table, *([""] if lines else []), *lines])


def defences() -> str:
    """What a target may have behind its name, such as vgg16+jpeg75."""
    rows = []
    for name, kind in DEFENCES.items():
        doc = (kind.apply.__doc__ or "").partition("\n")[0]
        rows.append([f"+{name}", f"number: {kind.numbers}", doc])
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Names and what is said of them, in two columns."""
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def main() -> None:
    """Prints the names of a kind, or of all."""
    tidy_arguments()
    with one_sentence():
        words = sys.argv[1:]
        kinds = [word for word in words if "=" not in word and word[0] != "-"]
        overrides = [word for word in words if "=" in word and word[0] != "-"]
        if len(kinds) > 1:
            raise InputError(f"ls {' '.join(kinds)}: expected one of {', '.join(KINDS)}.")
        print(ls(kinds[0], overrides) if kinds else everything(overrides))
