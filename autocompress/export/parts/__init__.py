"""Cut a written file into files of its parts."""
