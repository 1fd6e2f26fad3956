"""The step cache: lossless, checksummed, and never half there."""

import errno
from pathlib import Path

import numpy as np
import pytest

from irattack.errors import InputError
from irattack.pipeline import files
from irattack.pipeline.artifact import Artifact
from irattack.pipeline.codec import kept_frames, read_frames, unzigzag, zigzag
from irattack.pipeline.steps import StepsCard


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
    code = zigzag(every)
    assert sorted(code) == list(range(256))
    assert (unzigzag(code) == every).all()
    assert code[[0, 255, 1, 254, 2]].tolist() == [0, 1, 2, 3, 4]


MADE = {"device": "cpu", "torch": "2", "commit": "x"}


def shard(path: Path, key: str = "a") -> Artifact[StepsCard]:
    return Artifact(path, {"key": key, "steps": 23}, StepsCard)


def write(path: Path, walk: tuple, wanted: range | list[int]) -> list[np.ndarray]:
    clean, frames = walk

    def keep(payload: bytes) -> None:
        shard(path).keep(payload, kept=list(wanted), made_with=MADE)

    return list(kept_frames(clean, frames, wanted, keep))


def test_round_trip_is_lossless(tmp_path: Path, walk: tuple) -> None:
    clean, frames = walk
    path = tmp_path / "0000.b2"
    passed = write(path, walk, range(23))
    found = list(read_frames(path, clean, 23))
    assert len(found) == len(passed) == 23
    for these in (found, passed):
        assert all((a == b).all() for a, b in zip(these, frames, strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.b2", "0000.json"]


def test_some_steps_are_kept_or_none(tmp_path: Path, walk: tuple) -> None:
    clean, frames = walk
    path = tmp_path / "0000.b2"
    wanted = [0, 3, 4, 9, 10, 11, 15, 16, 17, 18, 19, 22]
    assert len(write(path, walk, wanted)) == 23
    found = list(read_frames(path, clean, len(wanted)))
    assert all((a == frames[i]).all() for a, i in zip(found, wanted, strict=True))
    card = shard(path).card()
    assert card is not None
    assert card.kept == wanted
    with pytest.raises(InputError, match=r"0000\.b2 does not hold the steps of 5 images"):
        next(read_frames(path, clean, 23))
    assert len(write(tmp_path / "none.b2", walk, [])) == 23
    assert not (tmp_path / "none.b2").exists()


def test_damage_is_noticed_and_named(
    tmp_path: Path, walk: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "0000.b2"
    assert shard(path).card() is None
    assert not caplog.messages  # nothing is said of what was never there
    write(path, walk, range(23))
    assert shard(path).card()
    assert shard(path, "b").card() is None
    assert "another configuration (key)" in caplog.messages[-1]
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        path.write_bytes(broken)
        assert shard(path).card() is None
        assert f"{path} is damaged" in caplog.messages[-1]
    path.unlink()
    assert shard(path).card() is None
    assert "is missing, its card is there" in caplog.messages[-1]
    path.write_bytes(whole)
    path.with_suffix(".json").write_text("{")
    assert shard(path).card() is None
    assert "has no card" in caplog.messages[-1]


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path, walk: tuple) -> None:
    clean, frames = walk

    def interrupted():  # type: ignore[no-untyped-def]
        yield frames[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "0000.b2", (clean, interrupted()), range(2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_keeps_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.locked(tmp_path / "lock"):
        files.write_text(tmp_path / "there", "")
    assert (tmp_path / "there").is_file()


def test_a_card_is_of_what_its_process_wrote(
    tmp_path: Path, walk: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.write_bytes

    def replaced(path: Path, content: bytes) -> None:
        """What another process writes to the same path right after."""
        real(path, content)
        if path.suffix == ".b2":
            real(path, content[::-1])

    monkeypatch.setattr(files, "write_bytes", replaced)
    write(tmp_path / "0000.b2", walk, range(23))
    assert shard(tmp_path / "0000.b2").card() is None
