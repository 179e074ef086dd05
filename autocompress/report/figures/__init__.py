"""Draw the figures of a report; the page draws them in the colours of its theme."""
