"""A real Slurm of one node, in its own folder: Debian's `slurm-wlm` and `munge`, no accounting database."""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
# A job that was queued again starts after `cred_expire` seconds; the default of two minutes is too long for a test.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why a Slurm cannot be started here; empty if it can."""
    if absent := [program for program in PROGRAMS if not _path(program)]:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """The daemons of a cluster, which end with this object's `stop`, or with the process that started them."""

    def __init__(self, folder: Path):
        self.folder, self.host = folder, socket.gethostname().partition(".")[0]
        self.daemons: list[subprocess.Popen] = []
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o400)
        text = CONFIGURATION.format(host=self.host, folder=folder, ports=_free_ports(2))
        (folder / "slurm.conf").write_text(text)
        self.environment = {"SLURM_CONF": f"{folder}/slurm.conf"}
        try:
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    def _start_daemons(self) -> None:
        options = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        files = {"key-file": self.folder / "key"}
        munge = [f"--{name}={files.get(name, self.folder / f'munge.{end}')}" for name, end in options.items()]
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            with open(self.folder / f"{command[0]}.out", "wb") as output:
                daemon = subprocess.Popen(
                    [_path(command[0]), *command[1:]],
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
            self.daemons.append(daemon)
        self.wait(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T", check=False), 60)

    def run(self, *command: str, check: bool = True) -> str:
        """The output of a command of Slurm."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=check)
        return done.stdout.strip()

    def queue(self) -> list[str]:
        """Names of the jobs that wait or run."""
        return self.run("squeue", "--noheader", "--format=%j").split()

    def wait(self, condition, seconds: float = 240) -> None:
        """Waits until a condition holds. Raises TimeoutError with the queue and Slurm's last lines."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                log = (self.folder / "slurmctld.log").read_text(errors="replace")[-3000:]
                raise TimeoutError(f"{self.run('squeue', check=False)}\n{log}")
            time.sleep(0.2)

    def stop(self) -> None:
        with suppress(subprocess.SubprocessError):
            if self.queue():
                self.run("scancel", "--signal=KILL", "--user=root", check=False)
                self.run("scancel", "--user=root", check=False)
                self.wait(lambda: not self.queue(), 20)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _path(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
