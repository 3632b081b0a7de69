"""Benchmarks with a known truth: how well supernets rank, and searches choose."""
