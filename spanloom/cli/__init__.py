"""The command line: one file per command, `main.py` the entry point, `app.py` the list."""
