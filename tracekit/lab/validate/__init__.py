"""Predictions against reality: record a baseline, predict a scenario, really run it, compare.

One file for each mechanism, found by its function `cases`; adding one touches nothing else.
"""
