"""All methods on one encoder, beside each other."""
