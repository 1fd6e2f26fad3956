"""Image-steps per second of attacks at two commits, side by side in one run.

    python -m scripts.side_by_side 25f6aa4 HEAD --attacks vr hybridir di ir --network resnet34
    python -m scripts.side_by_side dd37543 HEAD --benchmark photos --images 64 --micro-batch 64

Each commit gets a process of its own, in a worktree of its own, with the packages of this
environment; each round asks one, then the other, for one step of the same attack on the same
images, so that whatever else the machine does meets both.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

WHERE = Path(__file__).resolve().parents[1]


def work(
    benchmark: str, network: str, images: int, micro_batch: int, precision: str, threads: int
) -> None:
    """Answers each line of standard input, an attack's name, with the seconds of one step."""
    import hydra
    import torch
    from hydra.utils import instantiate

    from irattack.attacks.loop import perturbations
    from irattack.attacks.randomness import Draws
    from irattack.commands.settings import register_resolvers
    from irattack.pipeline.cell import Cell
    from irattack.pipeline.compute import build, prepare

    register_resolvers()
    fixed = [f"benchmark={benchmark}", f"source={network}", "pretrained=false"]
    fixed += ["benchmark.sources=[]", f"precision={precision}", f"threads={threads}", "device=cpu"]
    with hydra.initialize_config_dir(str(Path.cwd() / "conf"), version_base="1.3"):
        generator = torch.Generator().manual_seed(0)
        for line in sys.stdin:
            cell = Cell(hydra.compose("config", overrides=[*fixed, f"attack={line.strip()}"]))
            prepare(cell.cfg)
            attack = instantiate(cell.steps_facts["attack"])
            model = build(cell, network, "source")
            size = cell.cfg.benchmark.size
            x = torch.rand(images, 3, size, size, generator=generator)
            y, ids = torch.zeros(images, dtype=torch.long), [f"image-{i}" for i in range(images)]
            off_zero = (torch.rand_like(x) - 0.5) / 255  # at δ = 0 the interaction has no probes
            steps = perturbations(attack, model, x, y, ids, Draws(0), micro_batch, off_zero)
            for _ in range(attack.recorded.start == 0):
                next(steps)
            start = time.perf_counter()
            next(steps)
            print(f"{time.perf_counter() - start:.6f}", flush=True)


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--attacks", nargs="+", default=["vr", "hybridir", "di", "ir"])
    parser.add_argument("--benchmark", default="imagenet")
    parser.add_argument("--network", default="resnet34")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    names = ("benchmark", "network", "images", "micro_batch", "precision", "threads")
    settings = tuple(getattr(given, name) for name in names)
    call = f"from scripts import side_by_side; side_by_side.work{settings!r}"

    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for number, commit in enumerate(given.commits):
            tree = Path(folder) / str(number)
            add = ["git", "-C", str(WHERE), "worktree", "add", "--detach", str(tree), commit]
            subprocess.run(add, check=True, capture_output=True)
            (tree / "scripts" / Path(__file__).name).write_text(Path(__file__).read_text())
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", call],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=tree,
            )
            workers.append(process)
        try:
            first, second = given.commits
            print(
                f"{given.network} of {given.benchmark}, {given.precision}, {given.images} images, "
                f"micro-batches of {given.micro_batch}, threads: {given.threads}, medians of "
                f"{given.rounds} rounds\n"
            )
            print(f"{'image-steps per second':24}{first:>12}{second:>12}{'ratio (range)':>24}")
            for attack in given.attacks:
                rounds: list[tuple[float, ...]] = []
                for _ in range(given.rounds + 1):  # the first warms up
                    taken = []
                    for process in workers:
                        assert process.stdin
                        assert process.stdout
                        print(attack, file=process.stdin, flush=True)
                        taken.append(float(process.stdout.readline()))
                    rounds.append(tuple(taken))
                rates = [[given.images / t for t in each] for each in zip(*rounds[1:], strict=True)]
                ratios = [new / old for old, new in zip(*rates, strict=True)]
                old, new = map(median, rates)
                spread = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                print(f"{attack:24}{old:>12.3f}{new:>12.3f}{spread:>24}", flush=True)
        finally:
            for number, process in enumerate(workers):
                process.kill()
                remove = ["git", "-C", str(WHERE), "worktree", "remove", "--force"]
                remove.append(str(Path(folder) / str(number)))
                subprocess.run(remove, check=False, capture_output=True)


if __name__ == "__main__":
    main()
