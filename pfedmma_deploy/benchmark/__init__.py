"""How fast is it here? Measured beside its peers in one run, with the environment written down."""
