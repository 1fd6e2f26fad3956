"""A Slurm of two nodes on this machine, without root, systemd or accounting, for tests."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=10
InactiveLimit=0
KillWait=1
MinJobAge=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=2000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def absent() -> list[str]:
    """The programs of Slurm that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]


@contextlib.contextmanager
def running() -> Iterator["Slurm"]:
    """A Slurm that is stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, as the path of a socket must be
    folder.chmod(0o755)
    one = Slurm(folder)
    try:
        one.start()
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Returns as soon as a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)


class Slurm:
    """The two nodes n1 and n2, each with one processor; `environment` makes commands use them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen] = {}
        self.environment = {
            **os.environ,
            "PATH": SEARCHED,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def start(self) -> None:
        """Starts munge, the controller and both nodes, and waits until they are idle."""
        munge = self.folder / "munge"
        for name in (munge, self.folder / "state"):
            name.mkdir()
        munge.chmod(0o755)
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        text = CONF.format(
            host=host, user=getpass.getuser(), folder=self.folder, ports=free_ports(3)
        )
        (self.folder / "slurm.conf").write_text(text)
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self.spawn("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        wait_for((munge / "socket").exists, 10, "munged")
        self.spawn("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self.states() == ["idle", "idle"], 30, "two idle nodes")

    def spawn(self, *command: str, node: str = "") -> None:
        """Starts a daemon; what it starts has its environment, or says SLURMD_NODENAME itself."""
        name = node or command[0]
        environment = self.environment | ({"SLURMD_NODENAME": node} if node else {})
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self.spawn("slurmd", "-D", "-c", "-N", node, node=node)

    def call(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=30
        )
        return done.stdout

    def states(self) -> list[str]:
        """The states of the nodes."""
        return self.call("sinfo", "--noheader", "--Node", "--format=%T").split()

    def jobs(self) -> dict[str, tuple[str, str]]:
        """State and node of each job in the queue, by its number such as 3_0."""
        lines = self.call("squeue", "--noheader", "--array", "--format=%i|%T|%N").splitlines()
        fields = [line.split("|") for line in lines]
        return {number: (state, node) for number, state, node in fields}

    def processes(self, **variables: str) -> list[int]:
        """The processes of this Slurm (daemons' children, jobs) with these variables set."""
        wanted = {"SLURM_CONF": self.environment["SLURM_CONF"], **variables}
        lines = {f"{name}={value}".encode() for name, value in wanted.items()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if lines <= set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != os.getpid()]

    def kill_node(self, node: str) -> None:
        """What a power cut does: the node's daemon and all its processes are gone at once."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        self.kill(self.processes(SLURMD_NODENAME=node))

    def stop(self) -> None:
        """Ends every process that belongs to this Slurm."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        self.kill(self.processes())

    @staticmethod
    def kill(processes: list[int]) -> None:
        """Ends processes without a warning."""
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
