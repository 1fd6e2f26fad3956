"""The photos benchmark: regions of different splits never overlap, crops are what they say."""

import numpy as np
import pytest

from irattack.data import photos
from irattack.errors import InputError


def test_splits_are_disjoint_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = photos.photograph

    def numbered(name: str) -> np.ndarray:  # a photograph whose pixels are their own positions
        height, width = real(name).shape[:2]
        first = photos.CLASSES.index(name) * 10**7
        return np.repeat(np.arange(height * width).reshape(height, width, 1) + first, 3, axis=2)

    monkeypatch.setattr(photos, "photograph", numbered)
    seen = {
        split: np.concatenate([area[..., 0].ravel() for _, area in photos.blocks(split)])
        for split in photos.SPLITS
    }
    everything = np.concatenate(list(seen.values()))
    assert len(np.unique(everything)) == len(everything)
    monkeypatch.undo()
    counts = {split: len(photos.crops(split)[1]) for split in photos.SPLITS}
    assert counts["train"] > counts["test"] > counts["val"] > 200


@pytest.mark.parametrize("split", photos.SPLITS)
def test_crops_come_from_their_photograph(split: str) -> None:
    images, labels, ids = photos.crops(split)
    assert images.shape[1:] == (32, 32, 3)
    assert images.dtype == np.uint8
    assert len(set(ids)) == len(ids) == len(labels)
    assert set(labels) == set(range(len(photos.CLASSES)))
    for i in np.random.default_rng(0).choice(len(ids), 5):
        photo = photos.photograph(photos.CLASSES[labels[i]])
        windows = np.lib.stride_tricks.sliding_window_view(photo[..., 0], (32, 32))
        assert (windows == images[i][..., 0]).all(axis=(2, 3)).any()


def test_a_changed_photograph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file, _, factor = photos.PHOTOS["coins"]
    monkeypatch.setitem(photos.PHOTOS, "coins", (file, "0" * 64, factor))
    photos.photograph.cache_clear()
    with pytest.raises(InputError, match=r"SHA-256 .* expected 000000000000"):
        photos.photograph("coins")
