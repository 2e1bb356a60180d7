"""Which worker serves which model: registration, choice, failover, and the client of it all."""
