"""Detectors of two stages: boxes that may hold an object, then what each of them is."""
