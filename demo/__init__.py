"""Place of the browser demo; this package installs as `pfedmma_deploy.demo`."""
