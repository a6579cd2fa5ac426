"""The log file of a run: what Python's logging and warnings say while it runs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger("blockspike")
"""Logger of lines that are also printed; only the file shows them."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_APART = ("pytorch_lightning", "lightning")  # loggers that may pass nothing on to the root


@contextmanager
def logged_to(file: Path, title: str) -> Iterator[None]:
    """Append log records and warnings to `file` during the block; the terminal shows the same.

    Args:
        file: is made if it is missing.
        title: first line of this start.
    """
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    root, level, show = logging.getLogger(), LOGGER.level, warnings.showwarning
    loggers = [root, *(x for x in map(logging.getLogger, _APART) if not x.propagate)]
    # Python prints warnings by this handler only while the root has no other.
    printing = logging.lastResort if not root.handlers else None

    def show_and_log(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
        show(message, category, *where, **options)
        LOGGER.info("%s: %s", category.__name__, message)

    for logger in loggers:
        logger.addHandler(handler)
    if printing is not None:
        root.addHandler(printing)
    LOGGER.setLevel(logging.INFO)
    warnings.showwarning = show_and_log
    try:
        LOGGER.info(title)
        yield
        LOGGER.info("done")
    except BaseException as error:
        LOGGER.info("ended: %s: %s", type(error).__name__, error)
        raise
    finally:
        warnings.showwarning = show
        LOGGER.setLevel(level)
        for logger in loggers:
            logger.removeHandler(handler)
        if printing is not None:
            root.removeHandler(printing)
        handler.close()
