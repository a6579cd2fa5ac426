"""Optuna's studies below an output folder."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

FILE = "study.db"


def studies(output_dir: Path) -> "list[optuna.Study]":
    """All studies below a folder; none where Optuna never wrote."""
    files = sorted(output_dir.rglob(FILE))
    if not files:
        return []
    load = load_optuna().load_study
    return [load(study_name=None, storage=f"sqlite:///{file.absolute()}") for file in files]


def load_optuna() -> Any:
    """Import Optuna, silenced; raises ValueError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ValueError("search: expected optuna; pip install 'blockspike[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
