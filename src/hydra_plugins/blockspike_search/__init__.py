"""Hydra sweeper for `search=…`: batches of trials through whichever launcher is configured.

Hydra looks for sweepers only in packages below `hydra_plugins`, and imports all of them for every
command. So slow imports are made where they are used.
"""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Asks Optuna for trials, runs them and tells it their values; see `blockspike.search`."""

    def __init__(self, **options: Any):
        self.options = options  # of Hydra's own sweeper, whose node this one replaces
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search; see `blockspike.search.trials.run_search`."""
        from blockspike.commands.train import open_data
        from blockspike.search.trials import run_search

        assert self.config is not None and self.launcher is not None
        if params := self.options.get("params"):
            raise ValueError(f"hydra.sweeper.params: expected nothing in a search, got {params}")
        run_search(self.config, arguments, self.launcher.launch, open_data)
