"""What a representation is measured by."""
