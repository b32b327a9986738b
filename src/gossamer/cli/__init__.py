"""The command line: tasks, models, methods, one run, sweeps, reports. No other module of the library imports it."""
