"""The browser demo; this package installs as `pfedmma_deploy.demo`."""
