"""Benchmarks with systematic splits, one file per benchmark."""
