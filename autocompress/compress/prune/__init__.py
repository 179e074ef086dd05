"""Remove channels of groups, and elements of weights."""
