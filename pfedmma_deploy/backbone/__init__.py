"""Frozen open_clip models with two transformer towers."""
