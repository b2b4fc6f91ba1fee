"""One file per paper: what is built, what is shared, how updates combine."""
