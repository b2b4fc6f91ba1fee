"""Images, data sets and how they are divided among clients (numpy and Pillow only)."""
