"""Hydra's launcher for `sweep=slurm`: one job a run, with submitit.

Hydra takes launchers from packages below `hydra_plugins` only and imports all of them for every
command, so what is slow to import is imported where it is used.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

with contextlib.suppress(ImportError):  # of the extra `sweep`
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    class SlurmLauncher(submitit_launcher.SlurmLauncher):
        """Submits the runs that are neither finished nor in the queue, and waits for their jobs.

        What became of a run is in its folder, what became of its job is what Slurm says; the
        files in which submitit's jobs leave their results are not read.
        """

        def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
            """Run one job, in the job."""
            if not self.params.get("max_num_timeout"):
                # Submitit's warning that time is nearly up: it would end a job that is not to be
                # queued again. The run may use the rest.
                signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            return super().__call__(*args, **kwargs)

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            """Submit, print the ids of jobs, wait.

            Raises:
                ValueError: a time limit that is too short, or no Slurm here.
            """
            from blockspike.runs.slurm import cancelling, check_launcher, wait_for_jobs
            from blockspike.runs.sweeps import planned_run, runs_to_submit

            check_launcher(self.params)
            assert self.config is not None
            output_dir = Path(self.config.output_dir)
            runs = [planned_run(self.config, list(overrides)) for overrides in job_overrides]
            to_submit, jobs = runs_to_submit(output_dir, dict(runs))
            chosen = {
                run: (list(overrides), initial_job_idx + k)
                for k, ((run, _), overrides) in enumerate(zip(runs, job_overrides, strict=True))
                if run in to_submit
            }
            try:
                if chosen:
                    jobs |= self._submit(output_dir, chosen)
                wait_for_jobs(output_dir, jobs.values())
            except KeyboardInterrupt:
                print(f"the jobs go on; this ends them: {cancelling(jobs.values())}")
                raise
            return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]

        def _submit(
            self, output_dir: Path, chosen: dict[str, tuple[list[str], int]]
        ) -> dict[str, str]:
            """One job for each run; run → id of its job, which is also written and printed."""
            import submitit

            from blockspike.runs.slurm import rename_job, write_jobs

            given = dict(self.params)
            folder, n_timeouts = given.pop("submitit_folder"), given.pop("max_num_timeout")
            # From Slurm 22.05 to 23.11, srun takes one core if it is not told otherwise.
            cores = "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}"
            given["setup"] = [cores, *(given.get("setup") or [])]
            executor = submitit.AutoExecutor(
                folder, cluster="slurm", slurm_max_num_timeout=n_timeouts
            )
            shared = {field.name for field in dataclasses.fields(BaseQueueConf)}
            executor.update_parameters(
                **{k if k in shared else f"slurm_{k}": v for k, v in given.items()}
            )
            arguments = [
                (overrides, "hydra.sweep.dir", k, f"job_id_for_{k}", Singleton.get_state())
                for overrides, k in chosen.values()
            ]
            submitted = executor.map_array(self, *zip(*arguments, strict=True))
            jobs = {run: job.job_id for run, job in zip(chosen, submitted, strict=True)}
            write_jobs(output_dir, Path(folder).parent, jobs)
            for run, job in jobs.items():
                print(f"Slurm job {job}: {output_dir / run}", flush=True)
            for run, job in jobs.items():
                rename_job(job, run)
            return jobs
