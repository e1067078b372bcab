"""Commands that a person runs around training: making, checking and looking at data and models."""
