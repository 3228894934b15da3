"""Pure decisions: which input, which container, how many, where. State, an event and now go in, commands come out."""
