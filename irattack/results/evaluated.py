"""The table of images that another tool has made: success on each target, and what to doubt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from irattack.errors import some
from irattack.hashing import key
from irattack.pipeline import files
from irattack.pipeline.cell import Cell, file_name
from irattack.pipeline.exchange import Evaluation
from irattack.pipeline.statistics import successes, wilson
from irattack.pipeline.values import PRECISIONS
from irattack.results.names import clean_name, title


def record(found: Evaluation, target: str) -> dict[str, Any]:
    """A target as a table row; rates in percent, with 95 % intervals (Wilson)."""
    success = successes(found.margins[target][None])[0]
    n = len(success)

    def rate(name: str, hits: np.ndarray) -> dict[str, float]:
        low, high = wilson(int(hits.sum()), n)
        return {
            f"{name}_percent": 100 * float(hits.mean()),
            f"{name}_ci_low": 100 * low,
            f"{name}_ci_high": 100 * high,
        }

    return {
        "target": target,
        "n": n,
        **rate("success_rate", success),
        **rate("success_in_ball", success & ~found.exceeds),
        "exceeding": int(found.exceeds.sum()),
        "clean_error_percent": 100 * float((found.clean[target] > 0).mean()),
        "mean_l2": float(found.l2.mean()),
        "largest_linf_levels": float(found.linf.max()),
    }


def remarks(cell: Cell, folder: str | Path, found: Evaluation) -> list[str]:
    """What was measured, and a sentence for each thing to doubt."""
    cfg, saved, n = cell.cfg, found.saved, len(found.images)
    ids, norm = found.images.ids, cfg.norm.eps is not None
    ball = f"‖δ‖ ≤ ε in {title(cell.norm)}, eps={cfg.eps}" if norm else "no ball"
    counts = "Wrong on the clean image counts as success."
    if cell.targeted:
        counts = f"goal=targeted, wanted={cfg.wanted}: success is that the wanted class is given."
    said = [
        f"{folder}, benchmark={cfg.benchmark.name}, n={n} images, seed={cfg.seed}; {ball}; "
        f"{PRECISIONS[cfg.precision]}, {found.made_with['device']}, torch "
        f"{found.made_with['torch']}, commit {found.made_with['commit']}. No step was chosen; "
        "intervals are 95 % (Wilson), over images. In the ball: an image outside counts as no "
        f"success. {counts}"
    ]
    lengths = (
        f"largest ‖δ‖∞ {found.linf.max():.0f}/255, mean ‖δ‖₂ {found.l2.mean():.3f}, largest "
        f"{found.l2.max():.3f}"
    )
    outside = np.flatnonzero(found.exceeds).tolist()
    if outside:
        named = some([ids[row] for row in outside])
        said.append(f"{len(outside)} of {n} images exceed ε ({named}); {lengths}.")
    else:
        said.append(f"No image exceeds ε; {lengths}.")
    same = [ids[row] for row in np.flatnonzero(found.linf == 0).tolist()]
    doubts = {
        "images are missing, and left out": (saved.missing, n + len(saved.missing)),
        "images are the clean ones, unchanged": (same, n),
        "images are JPEG or WebP, which may have changed their pixels; write PNG": (saved.lossy, n),
        "images of the folder are named as no clean image, and left out": (
            saved.strange,
            n + len(saved.strange),
        ),
    }
    for what, (names, of) in doubts.items():
        if names:
            said.append(f"{len(names)} of {of} {what} ({some(names)}).")
    return said


def write(cell: Cell, folder: str | Path, found: Evaluation) -> str:
    """Writes outputs/<benchmark>/evaluated/<folder>-<hash>.{csv,md}; returns what to print."""
    rows = [record(found, target) for target in found.margins]
    lines = [["target", "n", "success % [95 %]", "in the ball % [95 %]", clean_name(cell.targeted)]]
    for row in rows:
        rates = [
            f"{row[f'{name}_percent']:.1f} "
            f"[{row[f'{name}_ci_low']:.1f}, {row[f'{name}_ci_high']:.1f}]"
            for name in ("success_rate", "success_in_ball")
        ]
        clean = f"{row['clean_error_percent']:.1f}"
        lines.append([title(row["target"]), str(row["n"]), *rates, clean])
    head = f"Success of the images in {Path(folder).name}"
    said = remarks(cell, folder, found)
    facts = {
        "images": found.images.entries(),
        "files": replace(found.images, pixels=found.saved.pixels).entries(),
        "targets": {name: cell.identity(name) for name in found.margins},
        "ball": [cell.norm, cell.cfg.norm.eps],
        "wanted": found.images.aims.tolist() if cell.targeted else None,
        "seed": cell.cfg.seed,  # of defences that draw
        "precision": cell.cfg.precision,
    }
    out = cell.root / "evaluated"
    name = f"{file_name(Path(folder).resolve().name)}-{key(facts)}"

    def text(style: str) -> str:
        return tabulate(lines[1:], headers=lines[0], tablefmt=style, disable_numparse=True)

    files.write_text(out / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False))
    files.write_text(out / f"{name}.md", "\n\n".join([f"# {head}", text("github"), *said]) + "\n")
    where = f"Written to {out}: {name}.csv, {name}.md"
    return "\n\n".join([head, text("simple"), *said, where])
