"""Prediction over HTTP: requests for many clients, gathered into batches of one model."""
