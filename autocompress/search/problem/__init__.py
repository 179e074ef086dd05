"""State what is searched: settings, objectives, time, and all that is made once per task."""
