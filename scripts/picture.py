"""The picture of the README: what IR gains over PGD on each pair of source and target.

    python -m scripts.picture "photographs=outputs/photos/tables/table1_gain.csv" "…=…_gain.csv"

Each argument is what the picture calls a benchmark, and the file of gains of a table there. The
paper's gains are those that stand in the first file. The points go to docs/picture.csv, and without
arguments the picture is drawn again from there.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from irattack.errors import InputError
from irattack.results.plotting import STYLE

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ["where", "source", "norm", "target", "n", "gain", "ci_low", "ci_high"]
PAPER = "paper, ImageNet"
NORMS = {"linf": "L∞", "l2": "L2"}
COLOURS = ["#6b6b6b", "#0072b2", "#d55e00", "#009e73"]  # of Okabe and Ito


def points(tables: list[str]) -> pd.DataFrame:
    """The gains of IR over PGD: the paper's, and those of `name=file` for each table."""
    parts = []
    for number, text in enumerate(tables):
        name, found, path = text.rpartition("=")
        if not found or not Path(path).is_file():
            raise InputError(f"{text}: expected a name, =, and the file of gains of a table.")
        gains = pd.read_csv(path)
        gains = gains[(gains.attack == "ir") & (gains.over == "pgd")]
        if number == 0:
            printed = gains.dropna(subset="paper_gain")
            printed = printed.assign(gain=printed.paper_gain, n=None)  # n: not said
            parts.append(printed.drop(columns=["ci_low", "ci_high"]).assign(where=PAPER))
        parts.append(gains.assign(where=name))
    return pd.concat(parts)[COLUMNS]


def spread(values: np.ndarray, width: float, room: float) -> np.ndarray:
    """How far each point goes up or down so that none nearer than `width` covers another."""
    placed: list[tuple[float, float]] = []
    heights = sorted(np.linspace(-room, room, 7), key=abs)
    for value in values:
        near = [height for at, height in placed if abs(at - value) < width]
        free = [height for height in heights if height not in near]
        placed.append((value, free[0] if free else 0.0))
    return np.array([height for _, height in placed])


def draw(data: pd.DataFrame, path: Path) -> None:
    """One panel a norm, one row a benchmark, one point a pair; the means as numbers."""
    names = list(dict.fromkeys(data["where"]))
    style = STYLE | {"font.size": 9, "axes.titlesize": 10, "ytick.labelsize": 9}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1,
            2,
            figsize=(8, 0.6 + 0.62 * len(names)),
            sharey=True,
            sharex=True,
            layout="constrained",
        )
        for axis, (norm, title) in zip(axes, NORMS.items(), strict=True):
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(title, loc="left", fontweight="bold")
            for row, name in enumerate(names):
                of = data[(data["where"] == name) & (data.norm == norm)].sort_values("gain")
                if of.empty:
                    axis.text(1, -row, "not measured", va="center", color="0.4", fontsize=8)
                    continue
                colour = COLOURS[row % len(COLOURS)]
                sure = (of.ci_low.isna() | (of.ci_low > 0)).to_numpy()
                heights = spread(of.gain.to_numpy(), 0.9, 0.3) - row
                for which, face in ((sure, colour), (~sure, "white")):
                    axis.scatter(
                        *(of.gain[which], heights[which], 12),
                        **{"facecolor": face, "edgecolor": colour, "linewidth": 0.8, "zorder": 3},
                    )
                mean = of.gain.mean()
                axis.plot([mean, mean], [-row - 0.4, -row + 0.4], color=colour, linewidth=2.5)
                says = f"{mean:+.1f}, {int((of.gain > 0).sum())} of {len(of)} above 0"
                axis.text(
                    1,
                    -row + 0.42,
                    says,
                    ha="right",
                    fontsize=7.5,
                    color=colour,
                    transform=axis.get_yaxis_transform(),
                    va="bottom",
                )
            axis.set_xlabel("gain of IR over PGD, points of success")
            axis.set_yticks([-row for row in range(len(names))], names)
            axis.set_ylim(-len(names) + 0.45, 0.75)
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


def main(tables: list[str]) -> None:
    """Writes docs/picture.csv from the tables, if there are any, and docs/picture.png from it."""
    if tables:
        points(tables).to_csv(DOCS / "picture.csv", index=False, float_format="%.6g")
    draw(pd.read_csv(DOCS / "picture.csv"), DOCS / "picture.png")
    print(f"Written to {DOCS}: picture.csv, picture.png")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        raise SystemExit(f"picture: {error}") from None
