"""Probes: callbacks that ask one question each of any model, one file per question."""
