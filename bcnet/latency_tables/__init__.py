"""Latency tables: measured layers (`table.py`), bound to a space (`model.py`), and a probe of the machine."""
