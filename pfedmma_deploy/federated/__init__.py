"""Rounds of federated training: server, clients and the engine that runs them."""
