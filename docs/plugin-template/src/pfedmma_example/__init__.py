"""A method, a data set and a rule of aggregation for pfedmma."""
