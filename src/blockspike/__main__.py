"""`python -m blockspike COMMAND …`, the same as `blockspike COMMAND …`."""

from blockspike.cli import main

if __name__ == "__main__":
    main()
