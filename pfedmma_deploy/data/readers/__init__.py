"""One module per family of ways in which data sets lie on disk, each with its `READERS`.

A reader has two functions: `find` says from the layout alone whether a path is its own, `read`
lists the images. None of them runs code that a data set brings along.
"""
