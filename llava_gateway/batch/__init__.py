"""Batches: a file of requests is answered line by line. A run that was killed resumes with the lines that have no answer yet."""
