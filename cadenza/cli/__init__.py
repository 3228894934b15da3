"""What the user types. Above every other room: the only place that wires control, agent and SDK together."""
