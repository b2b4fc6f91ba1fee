"""Small trainable modules beside the frozen blocks; each names its parameters by scope."""
