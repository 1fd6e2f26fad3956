"""The settings of a cell: one typed schema that covers every key of conf/config.yaml once.

A field's description is what the user is told to give instead of a value that cannot be used.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from irattack.conf import yamls
from irattack.errors import InputError, UnfitError, unknown
from irattack.models import zoo
from irattack.pipeline.values import (
    PRECISIONS,
    RADIUS,
    AsNumber,
    AtLeast0,
    Deviation,
    Device,
    Flag,
    FlagOrAuto,
    Given,
    Names,
    Odd,
    Path_,
    Positive,
    Radius,
    Step,
    Whole,
    WholeOrAuto,
    check_paths,
    number,
    one_of,
    within,
)

NO_SLOTS = ("defaults", "name", "pieces")  # of the yaml of an attack or piece


class Strict(BaseModel):
    """No key that is not listed."""

    model_config = ConfigDict(extra="forbid")


class StepSize(Strict):
    """α of each norm."""

    linf: Step
    l2: Positive
    free: Positive


class Relaxed(Strict):
    """Of the relaxed attack."""

    steps: Whole
    tau: Positive


class Benchmark(Strict):
    """A benchmark (conf/benchmark): images, networks, sets of targets, settings."""

    name: str
    data: dict[str, Any]
    size: Whole
    images: Whole
    eps: Radius
    steps: Whole
    step_size: StepSize
    samples: Whole
    cells: Whole
    grid: Whole
    copies: Whole
    sigma: Deviation
    generator: one_of("mt19937", "philox")  # type: ignore[valid-type]
    relaxed: Relaxed
    kernel: Odd
    threads: Whole
    micro_batch: WholeOrAuto
    block: Whole
    any_timm_model: Flag
    models: str | None = None
    model: dict[str, Any]
    sources: Names
    source_sets: dict[str, list[str]] = {}
    target_sets: dict[str, list[str]]
    validation: dict[str, Any] = {}


class Norm(BaseModel):
    """A norm (conf/norm) or that of an attack."""

    model_config = ConfigDict(extra="allow")
    eps: Annotated[AsNumber[Radius] | None, Field(description=RADIUS)] = None
    step_size: AsNumber[Positive]


class Protocol(Strict):
    """How the paper is read (conf/protocol): values of the loop and of its pieces."""

    name: str
    record: one_of("after", "before", "last")  # type: ignore[valid-type]
    reduction: one_of("mean", "sum")  # type: ignore[valid-type]
    sgm: one_of("exact", "authors")  # type: ignore[valid-type]
    replacement: Flag
    border: one_of("shared", "uncovered")  # type: ignore[valid-type]
    rival: one_of("set", "step")  # type: ignore[valid-type]
    skip_at_zero: Flag


class AttackSettings(BaseModel):
    """What every attack says; the pieces in its other slots check themselves."""

    model_config = ConfigDict(extra="allow")
    name: str
    norm: Norm
    steps: Whole
    start: one_of("auto", "random", "zero", "noise")  # type: ignore[valid-type]
    record: one_of("after", "before", "last")  # type: ignore[valid-type]
    every: Whole = 1
    restarts: Whole = 1

    @property
    def recorded(self) -> int:
        """How many steps are recorded."""
        return 1 if self.record == "last" else -(-self.steps // self.every)


class Cache(Strict):
    """Of the step cache."""

    steps: Annotated[
        Literal["all", "none"] | list[Annotated[int, Field(strict=True, ge=1)]],
        Field(description="all, none, or a list of steps such as [10,50,100]"),
    ]


class Settings(Strict):
    """All that decides a cell; see conf/config.yaml."""

    benchmark: Benchmark
    protocol: Protocol
    source: Annotated[str, Field(description="one model; with -m, source=a,b runs a cell of each")]
    targets: Annotated[
        str | Annotated[list[str], Field(min_length=1)],
        Field(description="a list of at least one name, such as [vgg16], or a set of targets"),
    ]
    lam: AtLeast0
    gamma: Annotated[
        Annotated[Given, within(0, 1, open_below=True)] | None,
        Field(description="a factor in (0, 1], or null"),
    ]
    confidence: Annotated[
        Annotated[Given, within(0, 1, open_below=True, open_above=True)] | None,
        Field(description="a probability above 0 and below 1, such as 0.99, or null"),
    ] = None
    start: one_of("auto", "random", "zero", "noise")  # type: ignore[valid-type]
    loss: one_of("ce", "logit", "margin")  # type: ignore[valid-type]
    goal: one_of("untargeted", "targeted") = "untargeted"  # type: ignore[valid-type]
    wanted: one_of("seed", "data") = "seed"  # type: ignore[valid-type]
    eps: Radius
    steps: Whole
    c: AtLeast0
    p: Annotated[Given, within(1), Field(description="a number of 1 or more")]
    tau: Positive
    samples: Whole
    cells: Whole
    grid: Whole
    images: Whole
    seed: Annotated[int, Field(strict=True, ge=0, description="a whole number of 0 or more")]
    jobs: list[dict[str, Any]]
    pretrained: Flag
    weights_dir: Path_ | None
    manifest: Path_ | None
    precision: one_of(*PRECISIONS)  # type: ignore[valid-type]
    compile: FlagOrAuto
    device: Device
    threads: Whole
    micro_batch: WholeOrAuto
    block: Whole
    cache: Cache
    shard: Annotated[str | None, Field(description="i/n with i from 1 to n, such as 3/8")]
    track: one_of("mlflow", "wandb") | None = None  # type: ignore[valid-type]
    output: Path_
    norm: Norm  # after the settings that it is made of
    attack: AttackSettings

    @model_validator(mode="after")
    def _together(self) -> "Settings":
        """What settings must be together; each error is a sentence of its own."""
        check_names(self)
        if self.cells > self.grid**2:
            why = f"a grid={self.grid} board has only {self.grid**2} cells"
            raise InputError(f"cells={self.cells}: {why}; use fewer cells or a finer grid.")
        size = self.benchmark.size
        if self.grid > size:
            raise InputError(
                f"grid={self.grid}: finer than the image, which has {size} x {size} pixels; "
                f"use grid={size} or less."
            )
        kept = self.cache.steps
        most = -(-self.attack.steps // self.attack.every)
        if isinstance(kept, list) and max(kept, default=0) > most:
            why = f"this attack has only {most} steps" + " on record" * (self.attack.every > 1)
            raise InputError(f"cache.steps={kept}: {why}; list no later one.")
        share = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.shard or "1/1")
        if not (share and int(share[1]) <= int(share[2])):
            raise InputError(f"shard={self.shard}: expected i/n with i from 1 to n, such as 3/8.")
        check_paths(self.manifest, self.weights_dir)
        norm = self.attack.norm
        if (
            str((norm.model_extra or {}).get("_target_")).endswith(".Linf")
            and number(norm.step_size) > 1
        ):
            raise InputError(
                f"norm.step_size={norm.step_size:g}: expected a step in (0, 1] for images "
                "in [0, 1], such as 2/255."
            )
        attack = self.attack.model_extra or {}
        if ("penalty" in attack) != (self.norm.eps is None):
            raise InputError(
                "norm=free and attack=relaxed belong together: the relaxed attack (Eq. 8) has no "
                "ball, all others need one; leave norm out, or choose linf or l2 for another "
                "attack."
            )
        check_slots(attack.get("pieces", {}))
        if str(attack.get("backward", {}).get("_target_")).endswith(".SkipGradient"):
            check_skips(self)
        return self

    def plain(self) -> dict[str, Any]:
        """The settings as JSON can express them."""
        return self.model_dump(exclude_unset=True)


def settings_of(cfg: DictConfig) -> Settings:
    """The settings in a composed configuration.

    Raises:
        InputError: one of them cannot be used; the sentence names it.
    """
    given: Any = OmegaConf.to_container(cfg, resolve=True)
    given = {name: value for name, value in given.items() if name not in ("hydra", "piece")}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise explained(first["loc"], first["input"], first["type"], first.get("ctx", {})) from None
    check_own_slots(OmegaConf.to_container(cfg.attack))
    return settings


def explained(loc: tuple, value: Any, kind: str, context: dict[str, Any]) -> InputError:
    """The sentence for a value that the schema refuses."""
    cause = context.get("error")
    if isinstance(cause, InputError):
        return cause
    names: list[str] = []
    description, model = "", Settings
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            if kind == "extra_forbidden":
                names.append(str(part))
            break
        names.append(part)
        description = field.description or description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation  # type: ignore[assignment]
    name = ".".join(names)
    if kind == "extra_forbidden":
        return InputError(f"{name}=…: no such setting; `irattack --cfg job` lists them.")
    if kind == "missing":
        return InputError(f"{'.'.join(map(str, loc))}: is missing from the configuration; add it.")
    if isinstance(cause, ValueError) and cause.args:
        return unknown(name, value, cause.args[0])
    shown = str(value).replace("'", "").replace(", ", ",") if isinstance(value, list) else value
    return InputError(f"{name}={shown}: expected {description or 'another value'}.")


def check_names(settings: Settings) -> None:
    """Raises InputError if benchmark, source or targets name what is not there."""
    benchmark, targets = settings.benchmark, settings.targets
    if benchmark.name not in yamls("benchmark"):
        raise unknown("benchmark.name", benchmark.name, yamls("benchmark"))
    shared = zoo.shared(benchmark.name)
    if benchmark.model != shared:
        changed = [name for name in benchmark.model if benchmark.model[name] != shared.get(name)]
        raise InputError(
            f"benchmark.model.{(changed or ['…'])[0]}: what all networks of a benchmark share is "
            f"read from its yaml and cannot be set here; edit conf/benchmark/{benchmark.name}.yaml,"
            " or use lam= for the λ of this run."
        )
    zoo.card(benchmark.name, settings.source)
    accuracy = "irattack.pipeline.sources.Accuracy"  # takes no gradient
    attacks = any(job.get("_target_") != accuracy for job in settings.jobs)
    if "+" in settings.source and attacks:
        raise InputError(
            f"source={settings.source}: a defended network gives no gradients; name it as a "
            "target, or attack the network alone."
        )
    if isinstance(targets, str):
        if targets not in benchmark.target_sets:
            try:
                zoo.card(benchmark.name, targets, "targets")
            except InputError as error:
                near = [*benchmark.target_sets, *zoo.names(benchmark.name)]
                raise unknown("targets", targets, near) from error
        return
    for target in targets:
        zoo.card(benchmark.name, target, "targets")
        if targets.count(target) > 1:
            raise InputError(f"targets: {target} is listed twice; name each target once.")


@cache
def slots(path: Path) -> dict[str, Any]:
    """The slots that the yaml of a piece or attack fills, and what with, as it is written there."""
    filled: Any = OmegaConf.to_container(OmegaConf.load(path))
    return {name: value for name, value in filled.items() if name not in NO_SLOTS}


def check_slots(pieces: Iterable[str]) -> None:
    """Raises InputError if two of an attack's pieces fill the same slot of the loop."""
    known, filled = yamls("piece"), dict[str, str]()
    for piece in pieces:
        for slot in slots(known[piece]) if piece in known else ():
            if slot in filled:
                raise InputError(
                    f"piece: {filled[slot]} and {piece} both fill the slot `{slot}` of an attack; "
                    "leave one of them out."
                )
            filled[slot] = piece


def check_own_slots(attack: Any) -> None:
    """Raises InputError if an added piece undoes what the yaml of an attack says of a slot.

    Args:
        attack: as it is composed, with interpolations as they are written.
    """
    known, attacks = yamls("piece"), yamls("attack")
    if attack.get("name") not in attacks:
        return
    own = slots(attacks[attack["name"]])
    for piece in attack.get("pieces", {}):
        added = slots(known[piece]) if piece in known else {}
        for slot in own.keys() & added.keys():
            if undone(own[slot], attack.get(slot), added[slot]):
                raise InputError(
                    f"piece: {piece} replaces what attack={attack['name']} itself has in the slot "
                    f"`{slot}`; leave one of them out."
                )


def undone(own: Any, now: Any, added: Any) -> bool:
    """Whether a value of an attack's yaml has given way to that of a piece."""
    if isinstance(own, dict) and isinstance(now, dict) and isinstance(added, dict):
        return any(undone(own[name], now.get(name), added[name]) for name in own.keys() & added)
    return bool(now == added != own)


def check_skips(settings: Settings) -> None:
    """Raises InputError if SGM does not know the skip connections of the source."""
    benchmark, rule = settings.benchmark.name, settings.protocol.sgm

    def able(name: str) -> bool:
        skip = zoo.card(benchmark, name).get("skip") or {}
        return "relus" in skip if rule == "authors" else bool(skip)

    for name in zoo.card(benchmark, settings.source).get("members", [settings.source]):
        if not able(name):
            others = ", ".join(other for other in zoo.names(benchmark) if able(other))
            raise UnfitError(
                f"source={name}: attack={settings.attack.name} with "
                f"protocol={settings.protocol.name} needs skip connections that conf/model "
                f"describes, and this source has none; use {others or 'another attack'}."
            )
