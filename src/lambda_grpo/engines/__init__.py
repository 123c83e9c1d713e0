"""Thin adapters, one file per trainer. Only these modules import trl, verl or ray."""
