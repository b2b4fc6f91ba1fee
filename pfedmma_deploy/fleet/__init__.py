"""A federation across machines: the rounds of `federated`, carried by Flower."""

import os

# Before Flower is loaded: it would tell its makers that it runs, and ask them for news.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
