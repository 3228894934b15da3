"""One a machine: runs the containers that the control plane wants, and is the wire's end on the host."""
