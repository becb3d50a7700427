"""Published numbers, measured again: one module for each data set, `table.py` for how they are shown."""
