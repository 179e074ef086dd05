"""State what is searched: options, objectives, time, and everything that is made once per task and target."""
