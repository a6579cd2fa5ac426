"""`blockspike plot`."""

import typer

plot = typer.Typer(help="Draw runs.")


@plot.command("run")
def run_(folder: str) -> None:
    """Draw one."""


@plot.command()
def sweep(folder: str) -> None:
    """Draw one."""
