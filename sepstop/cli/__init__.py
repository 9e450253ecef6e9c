"""The `sepstop` command."""
