"""Shapley games, interactions inside perturbations of networks, Hessians: tensors in, tensors out.

Knows attacks as values; never a disk or a configuration.
"""
