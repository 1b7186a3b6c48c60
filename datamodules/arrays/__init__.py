"""Splits of a data set as arrays, in memory or on the disk: what they hold, their rules, and their order."""
