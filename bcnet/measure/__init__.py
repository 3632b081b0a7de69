"""What fills a latency table: which networks are measured, and the time of each of their layers."""
