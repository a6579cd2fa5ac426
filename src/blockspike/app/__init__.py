"""The commands of `blockspike COMMAND`, one file each."""
