"""What a runtime can execute and how long it takes."""
