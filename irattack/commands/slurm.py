"""How submitit learns that a job of Slurm has ended: from the queue."""

import os

from submitit.slurm.slurm import SlurmInfoWatcher


class QueueWatcher(SlurmInfoWatcher):
    """Asks squeue, which every cluster has, where submitit asks sacct, which needs accounting.

    A job that was killed or cancelled leaves no result, and without accounting submitit would wait
    for it for ever. Here a job without a result has ended once none of the jobs it was submitted
    with is in the queue: then every other job has had its time.
    """

    def _make_command(self) -> list[str] | None:
        mine = ["--user", str(os.getuid())]
        return ["squeue", *mine, "--noheader", "--format", "%F"]  # the array of each job

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """The state of every job, from the lines of squeue."""
        text = string.decode() if isinstance(string, bytes) else string
        queued = set(text.split())
        waiting = any(job.split("_")[0] in queued for job in self._registered)
        state = {"State": "RUNNING" if waiting else "ENDED"}
        return dict.fromkeys(self._registered, state)
