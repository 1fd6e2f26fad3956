"""The step cache: lossless, checksummed, and never half there."""

from pathlib import Path

import numpy as np
import pytest

from irattack import steps


@pytest.fixture
def walk() -> tuple[np.ndarray, list[np.ndarray]]:
    """Images and 23 frames of a random walk that is clipped at 0 and 255."""
    rng = np.random.default_rng(0)
    clean = rng.choice([0, 1, 100, 254, 255], (5, 3, 8, 8)).astype(np.uint8)
    frames, frame = [], clean.astype(int)
    for _ in range(23):
        frame = np.clip(frame + rng.integers(-9, 10, frame.shape), 0, 255)
        frames.append(frame.astype(np.uint8))
    return clean, frames


def test_zigzag_is_a_bijection_that_puts_small_changes_first() -> None:
    every = np.arange(256, dtype=np.uint8)
    code = steps.zigzag(every)
    assert sorted(code) == list(range(256))
    assert (steps.unzigzag(code) == every).all()
    assert code[[0, 255, 1, 254, 2]].tolist() == [0, 1, 2, 3, 4]


def test_round_trip_is_lossless(tmp_path: Path, walk: tuple) -> None:
    clean, frames = walk
    path = tmp_path / "0000.b2"
    steps.write_shard(path, clean, frames, {"key": "a"})
    found = list(steps.read_shard(path, clean))
    assert len(found) == 23
    assert all((a == b).all() for a, b in zip(found, frames, strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.b2", "0000.json"]


def test_damage_is_noticed(tmp_path: Path, walk: tuple) -> None:
    clean, frames = walk
    path = tmp_path / "0000.b2"
    steps.write_shard(path, clean, frames, {"key": "a"})
    assert steps.is_valid(path, {"key": "a"})
    assert not steps.is_valid(path, {"key": "b"})
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        path.write_bytes(broken)
        assert not steps.is_valid(path, {"key": "a"})
    path.unlink()
    assert not steps.is_valid(path, {"key": "a"})


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path, walk: tuple) -> None:
    clean, frames = walk

    def interrupted():  # type: ignore[no-untyped-def]
        yield frames[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.write_shard(tmp_path / "0000.b2", clean, interrupted(), {})
    assert list(tmp_path.iterdir()) == []
