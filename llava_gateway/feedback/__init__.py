"""Votes on answers. They are stored if the operator has set a directory for them, and exported as a training dataset."""
