"""What `blockspike COMMAND` runs, one file each."""
