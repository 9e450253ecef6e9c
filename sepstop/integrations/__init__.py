"""sepstop in the command lines of other tools."""
