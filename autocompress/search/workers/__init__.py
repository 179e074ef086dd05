"""Share a study among processes: storage, leases, the loop of one worker."""
