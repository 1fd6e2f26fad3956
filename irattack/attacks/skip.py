"""SGM: the backward pass through every residual branch is scaled by γ (Wu et al., 2020)."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from irattack.errors import InputError, one_of, ranged
from irattack.models.network import Ensemble


def named(network: nn.Module, pattern: str) -> list[nn.Module]:
    """The modules whose name the pattern matches from its start, in order."""
    return [module for name, module in network.named_modules() if re.match(pattern, name)]


def _scale_output(factor: float) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:  # a tensor hook sees the gradient before later in-place changes
            output.register_hook(lambda g: factor * g)

    return hook


def branches(model: nn.Module, facts: dict | None) -> list[tuple[nn.Module, dict]]:
    """The networks inside a model (an ensemble has several), each with its facts on skips."""
    if isinstance(model, Ensemble):
        return [pair for member in model.members for pair in branches(member, facts)]
    found = facts if facts is not None else getattr(model, "skip", None)
    if not found:
        raise InputError(
            "attack: SGM needs a source with skip connections, and this one has none (its yaml in "
            "conf/model names no `skip.branches`); choose a residual or dense network."
        )
    return [(getattr(model, "body", model), found)]


def check(facts: dict, rule: "SkipGradient") -> None:
    """Raises InputError if the facts on a network's skips lack what a rule needs."""
    needed = ["relus", "root"] if rule.one_graph else ["branches"]
    needed += ["gamma"] if rule.gamma is None else []
    if missing := [name for name in needed if name not in facts]:
        raise InputError(
            f"attack: what the source says of its skip connections lacks {' and '.join(missing)}; "
            "add it to `skip`."
        )


@dataclass(frozen=True)
class SkipGradient:
    """γ times the gradient of each residual branch, exactly once.

    Args:
        gamma: γ in (0, 1]; None for each network's own.
        rule: `exact`, the definition, or `authors`, what the authors' code does: on ResNets γ
            (√γ with bottlenecks) at the input of most ReLUs, and the gradient of each block's sum
            divided by its standard deviation over the whole batch; on DenseNets √γ at most ReLUs.
        facts: which modules are meant; None for the network's own (`skip` in its yaml):
            `branches`, a pattern for the last module of each branch; for the authors' rule
            `relus`, `root` (γ^root) and `blocks`, whose gradients are normalised (may be absent).
    """

    gamma: float | None = None
    rule: str = "exact"
    facts: dict | None = None

    def __post_init__(self) -> None:
        one_of("rule", self.rule, ("exact", "authors"))
        if self.gamma is not None:
            ranged("gamma", self.gamma, 0, 1, above=True)

    @property
    def one_graph(self) -> bool:
        """Whether a gradient depends on which probes share a forward pass."""
        return self.rule == "authors"

    @contextlib.contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        """Scales the backward passes through `model` inside the context; undone on exit."""
        handles: list[RemovableHandle] = []
        try:
            for network, facts in branches(model, self.facts):
                check(facts, self)
                gamma = facts["gamma"] if self.gamma is None else self.gamma
                attach = self._authors if self.rule == "authors" else self._exact
                handles += attach(network, facts, gamma)
                if not handles:
                    fact = "relus" if self.one_graph else "branches"
                    raise InputError(
                        f"attack: no module of the source matches skip.{fact}={facts[fact]!r}; "
                        "correct the pattern in the model's yaml."
                    )
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _exact(network: nn.Module, facts: dict, gamma: float) -> list[RemovableHandle]:
        ends = named(network, facts["branches"])
        return [end.register_forward_hook(_scale_output(gamma)) for end in ends]

    @staticmethod
    def _authors(network: nn.Module, facts: dict, gamma: float) -> list[RemovableHandle]:
        factor = gamma ** facts["root"]
        last: dict[str, bool] = {}

        def before_relu(scale: float) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
                nonlocal last
                last = state = {"normalise": False}

                def backward(g: Tensor) -> Tensor:
                    g = scale * g
                    return g / torch.std(g) if state["normalise"] else g

                if inputs[0].requires_grad:
                    inputs[0].register_hook(backward)

            return hook

        def after_block(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            last["normalise"] = True  # the ReLU that ran last is the one after the addition

        blocks = named(network, facts["blocks"]) if facts.get("blocks") else []
        scaled = set(named(network, facts["relus"]))
        inside = {m for block in blocks for m in block.modules() if isinstance(m, nn.ReLU)}
        handles = [
            relu.register_forward_pre_hook(before_relu(factor if relu in scaled else 1.0))
            for relu in [m for m in network.modules() if m in scaled | inside]
        ]
        return handles + [block.register_forward_hook(after_block) for block in blocks]
