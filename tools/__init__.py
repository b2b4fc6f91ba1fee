"""Build scripts of the embedded backbone and samples. Not part of the installed package."""
