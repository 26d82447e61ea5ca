"""One strict offline check of every file that a user writes; `jobs.validate` is its command. A module for each kind of file."""
