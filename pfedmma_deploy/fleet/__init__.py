"""A federation across machines: the rounds of `federated`, carried by Flower."""
