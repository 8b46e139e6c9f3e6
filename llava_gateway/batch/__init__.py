"""A file of requests answered, however often the run is killed: what is asked, what is known of it already, and the asking."""
