"""`blockspike report`."""


def report() -> None:
    """Draw one."""
