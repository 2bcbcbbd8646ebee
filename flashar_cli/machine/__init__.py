"""What this machine is, has left and reaches: environment, memory, clocks, rates, launches."""
