"""Quantising the states of attention: forms of a state, the rewriting, calibration and the byte budget."""
