"""Hydra launcher for `sweep=slurm`: one submitit job per run.

Hydra looks for launchers only in packages below `hydra_plugins`, and imports all of them for
every command. So slow imports are made where they are used.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

with contextlib.suppress(ImportError):  # installed with the extra `sweep`
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    class SlurmLauncher(submitit_launcher.SlurmLauncher):
        """Submit the runs that are neither finished nor queued, and wait for their jobs.

        The outcome of a run is read from its folder and that of its job from Slurm, not from
        submitit's result files.
        """

        def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
            """Run one job; called inside the job."""
            if not self.params.get("max_num_timeout"):
                # Submitit sends this signal when time is nearly up. It would end a job that will
                # not be queued again, although the run can use the remaining time.
                signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            return super().__call__(*args, **kwargs)

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> Sequence[JobReturn]:
            """Submit the runs, print their job ids and wait for the jobs.

            Raises:
                ValueError: the time limit is too short, or Slurm is not installed.
                OSError: Slurm does not answer.
            """
            from blockspike.runs.slurm import cancelling, check_launcher, wait_for_jobs
            from blockspike.runs.sweeps import planned_run, run_states, runs_to_submit
            from blockspike.search.trials import monitored_value

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
                print(f"the jobs continue; this ends them: {cancelling(jobs.values())}")
                raise
            states = run_states(output_dir, dict(runs)).set_index("run")
            monitor = self.config.get("monitor")  # a fit has none
            values = [
                monitor and monitored_value(states.loc[run, "folder"], monitor) for run, _ in runs
            ]
            return [JobReturn(status=JobStatus.COMPLETED, _return_value=x) for x in values]

        def _submit(
            self, output_dir: Path, chosen: dict[str, tuple[list[str], int]]
        ) -> dict[str, str]:
            """Submit a job for each run; returns run → job id, which is also saved and printed."""
            import submitit

            from blockspike.runs.slurm import rename_job, write_jobs

            given = dict(self.params)
            folder, n_timeouts = given.pop("submitit_folder"), given.pop("max_num_timeout")
            # In Slurm 22.05 and 23.02, srun does not take over the job's --cpus-per-task.
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
