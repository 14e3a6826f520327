"""The `csrkern` command, one file for each command."""
