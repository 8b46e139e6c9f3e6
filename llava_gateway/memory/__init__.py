"""How much memory models need, and how much this machine has."""
