"""What sampling keeps of the traces that matter: a simulation of an agent's traffic."""
