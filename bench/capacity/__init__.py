"""make capacity: the highest arrival rate at which the objectives hold, and what to set for it."""
