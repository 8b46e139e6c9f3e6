"""Votes on answers: kept in a directory where the operator has named one, and handed over as a dataset to train with."""
