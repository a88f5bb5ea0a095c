"""Records of datasets: reading them, naming their faults, settling their contradictions."""
