"""Frozen backbones: any open_clip CLIP with two transformer towers."""
