"""A live view of the runs of a plan: a page in the browser, and a line on the terminal."""
