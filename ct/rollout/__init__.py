"""How a candidate gets traffic: plans, verdicts, steps."""
