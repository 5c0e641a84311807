"""From the theory to a real model."""
