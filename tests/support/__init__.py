"""What several test files share: slow versions of the equations, small models, runs of the command line."""
