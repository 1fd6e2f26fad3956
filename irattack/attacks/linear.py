"""LinBP: the backward pass skips the ReLUs of later layers (Guo et al., 2020)."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from irattack.errors import InputError, ranged
from irattack.models.network import Ensemble


class _Straight(torch.autograd.Function):
    """Forward the second tensor, backward to the first as it comes."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, activated: Tensor) -> Tensor:
        return activated.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


@dataclass(frozen=True)
class LinearBackward:
    """∂ReLU(z)/∂z = 1 backward, from some ReLU on; the forward pass stays (Guo et al., 2020).

    The paper also rescales the gradients of residual branches, so that they keep the share of the
    sum that they have in the plain backward pass; that is not done here. ReLUs that are functions,
    not modules, stay as they are.

    Args:
        since: the first ReLU that is linear, as a part of all of the network in their order, in
            [0, 1]: 0 for all of them, 1 for none. The paper chooses a layer for each network,
            near the middle.
    """

    since: float = 0.5
    one_graph = False

    def __post_init__(self) -> None:
        ranged("since", self.since, 0, 1)

    @contextlib.contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        """Makes the ReLUs of `model` linear backward inside the context; undone on exit."""
        handles: list[RemovableHandle] = []
        try:
            for network in model.members if isinstance(model, Ensemble) else [model]:
                relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
                if not relus:
                    raise InputError(
                        "attack: LinBP needs a source with ReLUs that are modules, and this one "
                        "has none; choose another source or attack."
                    )
                for relu in relus[round(self.since * len(relus)) :]:
                    handles += _linear(relu)
            yield
        finally:
            for handle in handles:
                handle.remove()


def _linear(relu: nn.Module) -> list[RemovableHandle]:
    """Hooks of a ReLU, which may work in place, and may be called more than once in a pass."""
    given: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        given.append(inputs[0])
        return (inputs[0].detach().clone(),)

    def after(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return _Straight.apply(given.pop(), output)

    made: list[Callable[[], RemovableHandle]] = [
        lambda: relu.register_forward_pre_hook(before),
        lambda: relu.register_forward_hook(after),
    ]
    return [make() for make in made]
