"""Trains the small networks of the photos benchmark and reports their accuracy.

Run by `make train-photos`. The settings stand in conf/train.yaml; the weights go to
irattack/weights/photos as safetensors, each with its hash and accuracies in a .json beside it.
"""

import json
import logging
from multiprocessing import get_context
from pathlib import Path

import hydra
import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from irattack.data import photos
from irattack.hashing import sha256
from irattack.models.network import Network
from irattack.models.zoo import CONF, build
from irattack.pipeline.values import number

log = logging.getLogger(__name__)


class TrainingCrops:
    """Random crops of the training blocks, mirrored, with changes of contrast and colour, noisy.

    Classes are drawn uniformly; `batch` returns images (n, 3, CROP, CROP) in [0, 1], labels (n,).
    """

    def __init__(self, seed: int, contrast: float, colour: float, noise: float):
        self.rng = np.random.default_rng(seed)
        self.contrast, self.colour, self.noise = contrast, colour, noise
        blocks = photos.blocks("train")
        self.blocks = [[area for name, area in blocks if name == c] for c in photos.CLASSES]

    def crop(self, label: int) -> np.ndarray:
        """One crop (CROP, CROP, 3) uint8 of a class."""
        while True:
            block = self.blocks[label][self.rng.integers(len(self.blocks[label]))]
            top, left = (self.rng.integers(side - photos.CROP + 1) for side in block.shape[:2])
            crop = block[top : top + photos.CROP, left : left + photos.CROP]
            if photos.has_contrast(crop):
                return crop[:, ::-1] if self.rng.random() < 0.5 else crop

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Images (n, 3, CROP, CROP) in [0, 1] and labels (n,)."""
        labels = self.rng.integers(len(photos.CLASSES), size=n)
        images = np.stack([self.crop(label) for label in labels]).transpose(0, 3, 1, 2) / 255
        images *= 1 + self.rng.uniform(-self.contrast, self.contrast, (n, 1, 1, 1))
        images += self.rng.uniform(-self.colour, self.colour, (n, 3, 1, 1))
        if self.noise:
            sigma = self.rng.uniform(0, self.noise, (n, 1, 1, 1))
            sigma *= self.rng.integers(2, size=sigma.shape)
            images += sigma * self.rng.standard_normal(images.shape)
        return torch.from_numpy(images).float().clamp(0, 1), torch.from_numpy(labels)


def fgsm(model: torch.nn.Module, images: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
    """The examples of ensemble adversarial training, x + ε sign ∇ℓ (Tramèr et al., 2018)."""
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
    return (images + eps * gradient.sign()).clamp(0, 1).detach()


def pgd(model: torch.nn.Module, images: Tensor, labels: Tensor, robust: DictConfig) -> Tensor:
    """The examples of adversarial training, from a random start (Madry et al., 2018)."""
    eps, step = number(robust.eps), number(robust.step_size)
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    found = low + torch.rand_like(images) * (high - low)
    for _ in range(robust.steps):
        moved = found.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), labels), moved)
        found = (moved.detach() + step * gradient.sign()).clamp(low, high)
    return found


@torch.no_grad()
def accuracy(model: torch.nn.Module, split: str) -> tuple[float, float]:
    """Accuracy and median probability of the true class on the fixed crops of a split."""
    images, labels, _ = photos.crops(split)
    x, y = photos.to_tensor(images), torch.from_numpy(labels)
    probability = model(x).softmax(dim=1)
    correct = (probability.argmax(dim=1) == y).float().mean()
    return correct.item(), probability.gather(1, y[:, None]).median().item()


def trained(name: str, folder: Path) -> torch.nn.Module:
    """A network with the weights that a training wrote to `folder`, else the shipped; frozen."""
    if not (folder / f"{name}.safetensors").is_file():
        return build("photos", name)
    model = build("photos", name, pretrained=False)
    assert isinstance(model, Network)
    model.body.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.eval().requires_grad_(False)


def train(name: str, cfg: DictConfig) -> None:
    """Trains one network and saves its weights; a secured or robust one on attacked images."""
    torch.set_num_threads(1)
    torch.manual_seed(cfg.seed)
    model = build("photos", name, pretrained=cfg.resume).requires_grad_()
    model = model.to(memory_format=torch.channels_last)
    assert isinstance(model, Network)
    secured, robust = cfg.secured.get(name), cfg.robust.get(name)
    names = secured.teachers if secured else []
    teachers = [trained(teacher, Path(cfg.output)) for teacher in names]
    crops = TrainingCrops(cfg.seed, cfg.contrast, cfg.colour, cfg.noise)
    factors = cfg.factors.get(name, {})
    lr = cfg.lr * number(factors.get("lr", 1))
    steps = round(cfg.steps * factors.get("steps", 1))
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lr, total_steps=steps, pct_start=cfg.warmup
    )
    for _ in range(steps):
        x, y = crops.batch(cfg.batch)
        if teachers:
            half = len(x) // 2
            pick = int(crops.rng.integers(len(teachers) + 1))
            eps = torch.from_numpy(crops.rng.uniform(0, cfg.eps, (half, 1, 1, 1))).float()
            teacher = teachers[pick] if pick < len(teachers) else model.eval()
            x[:half] = fgsm(teacher, x[:half], y[:half], eps)
        if robust:
            x = pgd(model.eval(), x, y, robust)
        model.train()
        loss = F.cross_entropy(model(x), y, label_smoothing=cfg.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    path = Path(cfg.output) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.body.state_dict().items()}
    save_file(state, path)
    card: dict[str, object] = {"sha256": sha256(path), "kilobytes": path.stat().st_size // 1000}
    for split in ("val", "test"):
        card[f"{split}_accuracy"], card[f"{split}_confidence"] = (
            round(value, 4) for value in accuracy(model, split)
        )
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Trains every network of `networks`, the secured ones after their teachers."""
    OmegaConf.resolve(cfg)
    rounds = [
        [name for name in cfg.networks if name not in cfg.secured],
        [name for name in cfg.networks if name in cfg.secured],
    ]
    for names in rounds:
        with get_context("spawn").Pool(cfg.workers, maxtasksperchild=1) as pool:
            jobs = {name: pool.apply_async(train, (name, cfg)) for name in names}
            for name, job in jobs.items():
                job.get()
                log.info("%s %s", name, report(Path(cfg.output) / f"{name}.json"))


def report(path: Path) -> str:
    """One line on a trained network: held-out accuracy, median confidence, size."""
    card = json.loads(path.read_text())
    return (
        f"validation {card['val_accuracy']:.1%} test {card['test_accuracy']:.1%} "
        f"median p_y {card['test_confidence']:.2f}, {card['kilobytes']} kB"
    )


if __name__ == "__main__":
    main()
