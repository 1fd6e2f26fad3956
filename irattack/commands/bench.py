"""`make bench`: how near the IR attack comes to what the device can do, and what it gains.

In one run, side by side, for each network:

(a) the limit: bare forward and backward passes of the same network, folded, channels last, at its
    best batch, divided by the 2K + 1 probes of a step; cuDNN chooses its algorithms as in the
    pipeline;
(b) the straightforward way: one image at a time, K masks in a batch, separate passes for v(Λ),
    v(Λ∖S), v(S) and v(∅), all recomputed at each step, in the default memory format;

and the IR attack of the pipeline. Besides, what each attack costs outside the networks, the step
cache, leave-one-out and memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.losses import margin, strongest_rival
from irattack.attacks.norms import Linf
from irattack.attacks.randomness import Draws
from irattack.commands import overhead
from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.composing import nearest
from irattack.commands.disk import cache_speed, leave_one_out_seconds
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF
from irattack.errors import InputError
from irattack.exact import without_tf32
from irattack.models import zoo
from irattack.models.network import networks
from irattack.pipeline import files, speed
from irattack.pipeline.artifact import provenance
from irattack.pipeline.cell import Cell, attack_of
from irattack.pipeline.compute import build, device, prepare


def per_image(
    model: nn.Module, x: Tensor, delta: Tensor, y: Tensor, masks: Tensor, lam: float
) -> Tensor:
    """∇_δ of ℓ − λ Σ_k [v(Λ) − v(Λ∖S_k) − v(S_k) + v(∅)] / K, image by image: what (b) times.

    Args:
        masks: (B, K, 1, H, W), 1 in S_k.
    """
    gradients = []
    for image, change, label, sets in zip(x, delta, y, masks, strict=True):
        change = change.clone().requires_grad_()
        one, label = image[None], label[None]
        loss = F.cross_entropy(model(one + change), label)
        at_delta = model(one + change)
        rival = strongest_rival(at_delta.detach(), label)
        many = label.expand(len(sets)), rival.expand(len(sets))
        whole = margin(at_delta, label, rival)
        without = margin(model(one + change * (1 - sets)), *many)
        alone = margin(model(one + change * sets), *many)
        empty = margin(model(one), label, rival)
        interaction = (whole - without - alone + empty).mean()
        gradients.append(torch.autograd.grad(loss - lam * interaction, change)[0])
    return torch.stack(gradients)


class Contest:
    """One network in the three ways, on the same images and device."""

    def __init__(self, cell: Cell, cfg: DictConfig):
        self.cell, self.cfg, self.where = cell, cfg, device(cell.cfg)
        size = self.size = cell.cfg.benchmark.size
        count = nearest(cfg.images[self.where.type], cell.cfg.benchmark.name, size)
        self.x = torch.rand(count, 3, size, size, device=self.where)
        self.y = torch.zeros(count, dtype=torch.long, device=self.where)
        self.ids = [f"image-{i}" for i in range(count)]
        self.start = (torch.rand_like(self.x) - 0.5) / 255
        term = instantiate(cell.steps_facts["attack"]["interaction"])
        self.attack = Attack(Linf(16 / 255, 2 / 255), 1, interaction=term)
        self.fast = build(cell, cell.cfg.source, "source")

    def ours(self, micro_batch: int) -> Callable[[], object]:
        """One step of the pipeline's attack on all images."""

        def work() -> object:
            draws = Draws(0)
            found = perturbations(
                *(self.attack, self.fast, self.x, self.y, self.ids, draws, micro_batch, self.start)
            )
            return next(found)

        return work

    def straightforward(self) -> Callable[[], object]:
        """One step on one image, as (b)."""
        cfg = self.cell.cfg
        model = zoo.build(cfg.benchmark.name, cfg.source, cfg.pretrained).to(self.where)
        for part in networks(model):
            part.memory_format = torch.contiguous_format
        term = self.attack.interaction
        assert term is not None
        shape = (1, term.samples, 1, self.size, self.size)
        masks = (torch.rand(shape, device=self.where) < 0.125).float()
        one = slice(0, 1)

        def work() -> object:
            x, delta, y = self.x[one], self.start[one], self.y[one]
            return per_image(model, x, delta, y, masks, term.lam)

        return work

    def result(self) -> dict[str, Any]:
        """Image-steps per second of the three and their ratios, medians over the rounds."""
        cfg, count, least = self.cfg, len(self.x), self.cfg.seconds
        name = self.cell.cfg.benchmark.name
        batches = list(nearest(cfg.batches[self.where.type], name, self.size))
        probes = speed.probes(self.attack)
        best = speed.best_rate(
            *(speed.forward_backward, self.fast, self.size, self.where),
            *(batches, least),
        )
        images = torch.rand(best.batch, 3, self.size, self.size, device=self.where)
        bare = speed.forward_backward(self.fast, images)
        ours, naive = self.ours(best.batch), self.straightforward()
        rounds: list[tuple[float, float, float]] = []
        for _ in range(cfg.rounds + 1):
            limit = best.batch / speed.seconds(bare, self.where, least) / probes
            attack = count / speed.seconds(ours, self.where, least)
            with without_tf32():
                plain = 1 / speed.seconds(naive, self.where, least)
            rounds.append((limit, attack, plain))
        limit, attack, plain = np.array(rounds[1:]).T  # the first warms up

        def figures(name: str, values: np.ndarray) -> dict[str, Any]:
            spread = [round(float(values.min()), 4), round(float(values.max()), 4)]
            return {name: round(float(np.median(values)), 4), f"{name}_range": spread}

        return {
            "size": self.size,
            "probes_per_step": probes,
            "micro_batch": best.batch,
            **figures("limit_image_steps_per_s", limit),
            **figures("image_steps_per_s", attack),
            **figures("per_image_image_steps_per_s", plain),
            **figures("fraction_of_limit", attack / limit),
            **figures("speedup_vs_per_image", attack / plain),
            **(self.compiled(images, bare) if cfg.compile else {}),
        }

    def compiled(self, images: Tensor, bare: Callable[[], object]) -> dict[str, float]:
        """What torch.compile gains on the bare passes."""
        other = build(self.cell, self.cell.cfg.source, "source", compiling=True)
        work = speed.forward_backward(other, images)
        work()
        before = speed.seconds(bare, self.where, self.cfg.seconds)
        return {"compile_speedup": before / speed.seconds(work, self.where, self.cfg.seconds)}


def cell_of(overrides: list[str]) -> Cell:
    """The cell of these overrides of conf/config.yaml."""
    return Cell(hydra.compose("config", overrides=overrides))


def outside_networks(name: str, cfg: DictConfig, where: torch.device) -> dict[str, Any]:
    """What a step of an attack costs with a network that costs nothing."""
    given = ["benchmark=imagenet", f"attack={name}", "source=resnet34", "benchmark.sources=[]"]
    attack = attack_of(cell_of([*given, "pretrained=false"]))
    sizes = {key: cfg.overhead[key] for key in ("images", "size", "micro_batch")}
    timed = overhead.milliseconds(attack, **sizes, device=where, least=cfg.seconds)
    return {**sizes, **overhead.counts(attack, **sizes), "milliseconds": timed}


def bench(cfg: DictConfig) -> str:
    """Runs everything that conf/bench.yaml asks for, writes the JSON, returns what to print."""
    if "benchmark" in cfg:
        cfg.networks = {cfg.benchmark.name: cfg.benchmark.source_sets.get("paper", [])}
    pairs = [(group, name) for group, names in cfg.networks.items() for name in names]
    sizes = [b for groups in cfg.batches.values() for batches in groups.values() for b in batches]
    if (
        not pairs
        or cfg.rounds < 1
        or min(sizes, default=0) < 1
        or not all(batches for groups in cfg.batches.values() for batches in groups.values())
    ):
        raise InputError(
            "bench: expected at least one network, one round, and one batch size for each device "
            "and benchmark."
        )
    results: dict[str, Any] = {}
    cells: dict[str, Cell] = {}
    for group, name in tqdm(pairs, desc="bench", leave=False, disable=None):
        trained = f"pretrained={group == 'photos'}"
        cell = cells[group] = cell_of(
            [
                *(f"benchmark={group}", f"source={name}", "attack=ir", trained),
                *(f"precision={cfg.precision}", f"device={cfg.device}", f"threads={cfg.threads}"),
                "benchmark.sources=[]",
            ]
        )
        prepare(cell.cfg)
        results[name if group == "imagenet" else f"{group}/{name}"] = Contest(cell, cfg).result()
    where = device(next(iter(cells.values())).cfg)
    path = Path(cfg.output)
    outside = {name: outside_networks(name, cfg, where) for name in cfg.overhead.attacks}
    cache = cache_speed(where, path.parent)
    whole = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else speed.cpu_name(),
        "precision": cfg.precision,
        "per_image_precision": "fp32",
        "threads": cfg.threads,
        **provenance(),
        "rounds": cfg.rounds,
        "networks": results,
        "outside_networks": outside,
        "cache": cache,
        "leave_one_out_100x1000_seven_targets_s": leave_one_out_seconds(),
        "peak_memory_of_the_bench_mb": speed.peak_memory_mb(where),
    }
    files.write_json(path, whole)
    heads = ["network", "probes", "batch", "limit", "attack", "per image", "of limit", "speed-up"]
    lines = [
        [
            *(name, r["probes_per_step"], r["micro_batch"]),
            *(f"{r[key]:.3g}" for key in r if key.endswith("image_steps_per_s")),
            *(f"{r['fraction_of_limit']:.2f}", f"{r['speedup_vs_per_image']:.2f}"),
        ]
        for name, r in results.items()
    ]
    columns = ["micro_batches", "operators_per_micro_batch", "synchronisations", "milliseconds"]
    costs = [[name, *(each[column] for column in columns)] for name, each in outside.items()]
    return (
        f"IR attack, {cfg.precision}, {whole['device']}, {cfg.threads} threads; image-steps per "
        f"second, medians of {cfg.rounds} rounds\n\n{tabulate(lines, heads)}\n\n"
        f"A step of {cfg.overhead.images} images with a network that costs nothing:\n\n"
        f"{tabulate(costs, ['attack', *(column.replace('_', ' ') for column in columns)])}\n\n"
        f"Step cache: {100 * cache['ratio']:.1f} % of raw, written at "
        f"{cache['write_mb_per_s']:.0f} MB/s, read at {cache['read_mb_per_s']:.0f} MB/s. "
        f"Leave-one-out, seven targets at (100, 1000): "
        f"{1000 * whole['leave_one_out_100x1000_seven_targets_s']:.0f} ms. Peak memory of the "
        f"whole bench: {whole['peak_memory_of_the_bench_mb']:.0f} MB. Written to {path}."
    )


@hydra.main(config_path=str(CONF), config_name="bench", version_base="1.3")
def run(cfg: DictConfig) -> None:
    """Runs the benchmark and prints its table."""
    with one_sentence():
        OmegaConf.resolve(cfg)
        print(bench(cfg))


def main() -> None:
    """The entry point."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        run()
