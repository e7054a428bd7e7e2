"""Bundled real traces, synthetic generators, importers and exporters."""
