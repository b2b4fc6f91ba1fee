"""Local, base and novel accuracy of every client."""
