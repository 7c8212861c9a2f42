"""Measuring what was compiled on this machine, beside the engines people would use instead."""
