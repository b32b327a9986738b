"""Experiments: tasks, models, methods, one run, sweeps, reports and the command line. Nothing else in the package imports this."""
