"""The command line: tasks, models, methods, one run, sweeps, reports. It imports the library; nothing imports it."""
