"""Cut a written file into files of its parts, and count the bytes of its modules."""
