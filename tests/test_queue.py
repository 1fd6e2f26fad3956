"""What Slurm's queue says is what its jobs will make; the queue here is a script's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from irattack.commands import queue, status, submit
from irattack.errors import InputError

Squeue = Callable[..., None]
A, B, C = ("/out/a.json", ""), ("/out/b.json", ""), ("/out/c.json", "")


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """Sets what squeue prints, with which exit status."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for name in queue.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)

    def say(*lines: str, code: int = 0) -> None:
        text, stream = "\n".join(lines), 2 if code else 1
        (tmp_path / "squeue").write_text(f"#!/bin/sh\ncat >&{stream} <<E\n{text}\nE\nexit {code}\n")

    return say


def test_jobs_in_the_queue_tell_what_they_will_make(squeue: Squeue, tmp_path: Path) -> None:
    array, single = tmp_path / "array", tmp_path / "with space"
    queue.note(array, [[A], [B, C], []])
    queue.note(single, [[("/out/d.json", "2/8")]])
    script = ".submission_file_1.sh"
    squeue(
        f"7|0|R|{array}/{script}",
        f"7|1|PD|{array}/{script}",
        f"7|5|PD|{array}/{script}",  # of another list
        f"8|N/A|CG|{single}/{script}",
        "9|N/A|R|/elsewhere/of another program.sh",
        "10|N/A|R|(null)",
    )
    found = queue.queue()
    said = {promise: (task.number, task.running) for promise, task in found.items()}
    shard = ("/out/d.json", "2/8")
    assert said == {A: ("7_0", True), B: ("7_1", False), C: ("7_1", False), shard: ("8", True)}
    assert status.in_queue() == {
        **{Path("/out/a.json"): True, Path("/out/d.json"): True},
        **{Path("/out/b.json"): False, Path("/out/c.json"): False},
    }


def test_what_the_queue_makes_in_full_is_not_submitted_again(tmp_path: Path) -> None:
    first, second = (queue.Task("7", str(i), False, tmp_path) for i in range(2))
    queued = {A: first, B: first, C: second}
    assert queue.makers([], queued) == []
    assert queue.makers([A, B], queued) == [first]
    assert queue.makers([A, C], queued) == [first, second]
    assert queue.makers([A, ("/out/d.json", "")], queued) is None
    # A share of the shards is made by a job of the whole, not the other way round.
    assert queue.makers([("/out/a.json", "2/8")], queued) == [first]
    part = {("/out/a.json", "2/8"): first}
    assert queue.makers([("/out/a.json", "2/8")], part) == [first]
    assert queue.makers([A], part) is queue.makers([("/out/a.json", "3/8")], part) is None


def test_a_queue_that_does_not_answer(squeue: Squeue, capsys: pytest.CaptureFixture) -> None:
    squeue("squeue: error: Unable to contact slurm controller", code=1)
    with pytest.raises(InputError, match=r"does not answer .*Unable to contact"):
        queue.queue()
    assert status.in_queue() == {}
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "sentence"),
    [
        (
            "joblib",
            "hydra/launcher=joblib: has no queue to leave jobs in; use hydra/launcher=slurm",
        ),
        ("slurm", "hydra/launcher=slurm: there is no sbatch on this machine"),
    ],
)
def test_submitting_needs_a_queue(
    launcher: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    given = ["source=resnet34", "norm=linf", f"output={tmp_path}", f"hydra/launcher={launcher}"]
    monkeypatch.setattr("sys.argv", ["submit", "table1", *given])
    with pytest.raises(SystemExit):
        submit.main()
    assert capsys.readouterr().err.startswith(f"irattack: {sentence}")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_moved_while_sizes_are_summed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As temporary files are, beside a job that works."""
    (tmp_path / "kept").write_bytes(bytes(5))
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "folder").symlink_to(tmp_path)
    gone = tmp_path / ".kept.0123"
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: iter([*path.iterdir(), gone]))
    assert status.size(tmp_path) == 5
    assert status.size(tmp_path / "folder") == 0
    assert status.size(tmp_path / "kept") == 5
    assert status.size(tmp_path / "link") == 0
