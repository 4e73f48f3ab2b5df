"""What a plan costs before anything starts: hours, memory and disk from a few real updates on this machine."""
