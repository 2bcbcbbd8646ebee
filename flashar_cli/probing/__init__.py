"""`flashar probe`: linear probes on a frozen backbone show from which layer on it can predict the lower neighbour."""
