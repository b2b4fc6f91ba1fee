"""The run folder: everything a training run leaves on disk, verified when read."""
