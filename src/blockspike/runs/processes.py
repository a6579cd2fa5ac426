"""Processes of one run: which this one is, and what starts them (Slurm, torchrun or Lightning)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment


class OneProcess(LightningEnvironment):
    """A run of one process, whatever ranks the environment gives.

    Tasks that Slurm or torchrun start in parallel have ranks, though each may be a run of its own.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """True: there is nothing to start."""
        return True

    @property
    def main_address(self) -> str:
        """Address of this machine."""
        return "127.0.0.1"

    def local_rank(self) -> int:
        """Return 0."""
        return 0

    def node_rank(self) -> int:
        """Return 0."""
        return 0


class SlurmStep(ClusterEnvironment):
    """A run whose processes are the tasks of one Slurm step (`srun`).

    Lightning's own class reads the variables of the job, which may be larger than the step, and
    takes any step that `srun` allocates from a shell (job name `bash`) for an interactive one.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """True: `srun` has started them."""
        return True

    @property
    def main_address(self) -> str:
        """Host of the step's first task, or `MASTER_ADDR`."""
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        if os.environ["SLURM_STEP_NUM_NODES"] == "1":
            return "127.0.0.1"
        return SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])

    @property
    def main_port(self) -> int:
        """Port that all tasks of a step share and other steps do not; or `MASTER_PORT`."""
        step = 31 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ["SLURM_STEP_ID"])
        return int(os.environ.get("MASTER_PORT", 15000 + step % 10000))

    @staticmethod
    def detect() -> bool:
        """Whether this is a task of a step; the shell of a batch job is not."""
        return {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"} <= os.environ.keys()

    @classmethod
    def fits(cls, n_devices: int, n_nodes: int) -> bool:
        """Whether this is a task of a step with one task for each device."""
        if not cls.detect():
            return False
        sizes = os.environ["SLURM_STEP_NUM_TASKS"], os.environ["SLURM_STEP_NUM_NODES"]
        return sizes == (str(n_devices * n_nodes), str(n_nodes))

    def world_size(self) -> int:
        """Number of tasks in the step."""
        return int(os.environ["SLURM_STEP_NUM_TASKS"])

    def set_world_size(self, size: int) -> None:
        """Do nothing: Slurm sets it."""

    def global_rank(self) -> int:
        """This task's number in the step."""
        return int(os.environ["SLURM_PROCID"])

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: Slurm sets it."""

    def local_rank(self) -> int:
        """This task's number on its node."""
        return int(os.environ["SLURM_LOCALID"])

    def node_rank(self) -> int:
        """The node's number in the step."""
        return int(os.environ["SLURM_NODEID"])


def cluster_environment(trainer: Mapping[str, Any]) -> ClusterEnvironment:
    """Choose how the processes of a run with this `trainer` configuration find each other.

    With one device there is one process. With several, they are the processes that torchrun
    started; or the tasks of this process's Slurm step, if it has one task for each device; else
    processes that Lightning starts.
    """
    n_devices, n_nodes = _n_devices(trainer), int(trainer.get("num_nodes", 1))
    if n_devices * n_nodes == 1:
        return OneProcess()
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SlurmStep.fits(n_devices, n_nodes):
        return SlurmStep()
    return LightningEnvironment()


def rank_of(trainer: Mapping[str, Any]) -> int:
    """Number of this process among those of a run with this `trainer` configuration."""
    environment = cluster_environment(trainer)
    if type(environment) is LightningEnvironment:  # unset as yet
        return environment.node_rank() * _n_devices(trainer) + environment.local_rank()
    return environment.global_rank()


def _n_devices(trainer: Mapping[str, Any]) -> int:
    """Number of devices on a node as Lightning counts them; 1 for values that it will refuse."""
    devices: Any = trainer.get("devices", "auto")
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return max(len(devices), 1)
    if str(devices) in ("auto", "-1"):
        on_gpu = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
        return max(torch.cuda.device_count(), 1) if on_gpu else 1
    try:
        return max(int(devices), 1)
    except (TypeError, ValueError):
        return 1
