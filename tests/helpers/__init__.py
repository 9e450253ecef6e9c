"""Models, runs and scripts that several test files share."""
