"""What an attack costs outside the networks: operators, waits for the device, and time.

A step is run with a network that costs nothing. On a GPU each operator takes the host some
microseconds, in which a fast device idles, and each wait for the device lets it run dry. Both are
counted on PyTorch's device `meta`, which has no values: what asks it for one would wait for a GPU.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from irattack.attacks.loop import Attack
from irattack.attacks.randomness import Draws
from irattack.pipeline import speed


class Operators(TorchDispatchMode):
    """Counts the operators that are dispatched inside it, but for those of free networks.

    Attributes:
        count: how many, views included.
        waits: those that wait for the device, by name: a number or a size is asked of it
            (`item`, `tolist`, `nonzero`, boolean indices), or a copy is not asynchronous.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.waits, self.paused = 0, Counter[str](), False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        self.count += 1
        if not _waits(func, args, kwargs):
            return func(*args, **kwargs)
        self.waits[str(func)] += 1
        given = args[0]  # which has no values to give, if it is on `meta`; any will do
        if given.is_meta and func is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=given.dtype).item()
        if given.is_meta and func is torch.ops.aten._to_copy.default:
            return torch.ones(given.shape, dtype=kwargs.get("dtype") or given.dtype)
        return func(*args, **kwargs)


def _waits(func: Any, args: tuple, kwargs: dict) -> bool:
    name = func.overloadpacket.__name__
    if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
        return True
    if name in ("index", "index_put", "index_put_"):
        return any(each is not None and each.dtype == torch.bool for each in args[1])
    if name == "_to_copy":
        kinds = torch.device(kwargs.get("device") or args[0].device).type, args[0].device.type
    elif name == "copy_":
        kinds = args[0].device.type, args[1].device.type
        kwargs = {"non_blocking": args[2:3] == (True,), **kwargs}
    else:
        return False
    return kinds[0] != kinds[1] and (kinds[0] == "cpu" or not kwargs.get("non_blocking"))


class _Constant(torch.autograd.Function):
    """Logits and a gradient that were made before."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, network: "FreeNetwork") -> Tensor:
        ctx.network = network
        with network.uncounted():
            return network.logits[: len(images)].clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        with ctx.network.uncounted():
            return ctx.network.slope[: len(g)].clone(), None


class FreeNetwork(nn.Module):
    """A network whose passes cost a copy, with one residual branch for SGM."""

    def __init__(self, operators: Operators, images: Tensor, batch: int, classes: int = 10):
        super().__init__()
        self.operators, self.branch = operators, nn.Identity()
        self.skip = {"branches": "branch", "gamma": 0.5}
        self.logits = torch.rand(batch, classes, device=images.device)
        self.slope = torch.rand(batch, *images.shape[1:], device=images.device) - 0.5

    def uncounted(self) -> "Uncounted":
        """A context whose operators are not counted."""
        return Uncounted(self.operators)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), always the same."""
        return self.branch(_Constant.apply(images, self))


class Uncounted:
    """The inside of a free network."""

    def __init__(self, operators: Operators):
        self.operators = operators

    def __enter__(self) -> None:
        self.operators.paused = True

    def __exit__(self, *error: object) -> None:
        self.operators.paused = False


def second_step(
    attack: Attack,
    images: int,
    size: int,
    micro_batch: int,
    device: torch.device,
    operators: Operators,
) -> tuple[Callable[[], object], FreeNetwork]:
    """The work of step 2 from a δ that is not zero, and its network."""
    x = torch.rand(images, 3, size, size, device=device)
    y = torch.zeros(images, dtype=torch.long, device=device)
    model = FreeNetwork(operators, x, max(micro_batch, images))
    ids, draws, delta = [f"image-{i}" for i in range(images)], Draws(0), torch.rand_like(x) / 255

    def work() -> object:
        return attack.update(model, x, y, delta, delta, ids, 2, draws, micro_batch)

    return work, model


def counts(attack: Attack, images: int, size: int, micro_batch: int) -> dict[str, Any]:
    """`operators` outside the networks, `micro_batches` and `synchronisations` of one step.

    Args:
        images: of size x size pixels, attacked at once.
    """
    operators, passes = Operators(), 0
    work, model = second_step(attack, images, size, micro_batch, torch.device("meta"), operators)

    def count(module: nn.Module, inputs: tuple) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_pre_hook(count)
    with operators:
        work()  # what is made once is made
        operators.count, passes = 0, 0
        operators.waits.clear()
        work()
    return {
        "micro_batches": passes,
        "operators": operators.count,
        "operators_per_micro_batch": round(operators.count / passes, 1),
        "synchronisations": sum(operators.waits.values()),
    }


def milliseconds(
    attack: Attack, images: int, size: int, micro_batch: int, device: torch.device, least: float
) -> float:
    """Of one step with a network that costs nothing, over `least` seconds."""
    work, _ = second_step(attack, images, size, micro_batch, device, Operators())
    work()
    return round(1000 * speed.seconds(work, device, least), 2)
