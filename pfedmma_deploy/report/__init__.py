"""Tables and summaries for people and for programs."""
