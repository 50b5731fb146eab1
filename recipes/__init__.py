"""Complete experiments that anyone can run again."""
