"""Latency tables: rows of measured layers (`table.py`), bound to a space (`model.py`), and the machine's probe."""
