"""`python -m blockspike COMMAND …`, the same as `blockspike COMMAND …`."""

from blockspike.app.cli import main

if __name__ == "__main__":
    main()
