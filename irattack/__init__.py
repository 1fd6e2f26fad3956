"""Attacks, interactions and the evaluation protocol of the ICLR 2021 paper."""
