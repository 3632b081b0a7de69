"""Latency tables: measured layers (`table.py`), latencies of networks (`model.py`), regression checks."""
