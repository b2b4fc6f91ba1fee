"""One module per way in which data sets lie on disk; `registry.READERS` is the list of them.

A reader has two functions: `find` says from the layout alone whether a path is its own, `read`
lists the images. None of them runs code that a data set brings along, and none unpickles.
"""
