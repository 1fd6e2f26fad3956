"""How visible a perturbation is: measures of image quality, of the images as they are saved."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from irattack.errors import InputError
from irattack.pipeline.artifact import Arrays, Shapes
from irattack.pipeline.cell import Shard
from irattack.pipeline.measures import OfAttack

if TYPE_CHECKING:
    from irattack.pipeline.worker import Worker

VERSION = 1  # raise it when the same images are measured otherwise


def psnr(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """10 log₁₀(255² / mean squared difference) in dB, (B,); infinite for equal images.

    Args:
        first, second: (B, 3, H, W) uint8.
    """
    squares = (first.astype(float) - second.astype(float)) ** 2
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / squares.mean(axis=(1, 2, 3)))


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The mean structural similarity of images, (B,), at most 1, which only equal images reach.

    As Wang et al. (2004, IEEE Transactions on Image Processing 13(4), Eq. 13 to 17): a Gaussian
    window of 11 x 11 px and σ = 1.5, K₁ = 0.01, K₂ = 0.03, L = 255, the mean over all windows that
    lie in the image, and over the three channels (they measure brightness alone).

    Args:
        first, second: (B, 3, H, W) uint8, H and W of 11 or more.
    """
    from skimage.metrics import structural_similarity

    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(first, second, strict=True)
    each = [structural_similarity(a, b, data_range=255, channel_axis=0, **how) for a, b in pairs]
    return np.array(each)


def lpips(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The learned perceptual distance of images, (B,); 0 for equal images.

    As Zhang et al. (2018, CVPR, Eq. 1), by their package `lpips`, version 0.1 with AlexNet, whose
    weights torchvision downloads.

    Args:
        first, second: (B, 3, H, W) uint8.

    Raises:
        InputError: AlexNet's weights are not there and cannot be downloaded.
    """
    import torch

    a, b = (torch.from_numpy(images).float() / 127.5 - 1 for images in (first, second))
    with torch.no_grad():
        return _perceptual()(a, b).flatten().numpy()


@cache
def _perceptual() -> Any:
    from lpips import LPIPS

    try:
        with warnings.catch_warnings(action="ignore"):  # it asks torchvision in the old way
            return LPIPS(net="alex", verbose=False)
    except OSError as error:
        raise InputError(
            f"lpips=true: the weights of its AlexNet cannot be downloaded ({error}); run it once "
            "where there is internet, or leave lpips out."
        ) from error


@dataclass(frozen=True)
class Visibility(OfAttack):
    """`psnr` in dB and `ssim` of the last step's image beside the clean one, (N,) each.

    Args:
        lpips: measure `lpips`, too.

    Raises:
        InputError: its package is not installed.
    """

    lpips: bool = False
    kind: ClassVar[str] = "visibility"

    def __post_init__(self) -> None:
        if self.lpips:
            _ = self.settings

    @property
    def settings(self) -> dict[str, Any]:
        """The version of the measures."""
        if not self.lpips:
            return {"visibility": VERSION}
        try:
            return {"visibility": VERSION, "lpips": version("lpips")}
        except PackageNotFoundError as error:
            raise InputError(
                "lpips=true: needs the package lpips, which is not installed; "
                "`pip install lpips`, or leave it out."
            ) from error

    @property
    def measures(self) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
        """What is measured, by name."""
        return {"psnr": psnr, "ssim": ssim} | ({"lpips": lpips} if self.lpips else {})

    def shapes(self, name: str, images: int) -> Shapes:
        """A number an image."""
        return dict.fromkeys(self.measures, (images,))

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """All of a shard's images."""
        clean = shard.images.pixels
        levels = (255 * worker.last_delta(shard)).round().cpu().numpy()  # whole, as they are saved
        frame = (clean + levels).astype(np.uint8)
        step()
        found = {name: measure(frame, clean) for name, measure in self.measures.items()}
        return {self.kind: {name: values.astype(np.float32) for name, values in found.items()}}, (
            worker.made()
        )
