"""Numbers in, plan out: profiles of the machines, costs of the cuts, and the plan of a round."""
