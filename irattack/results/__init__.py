"""Tables, figures and claims, the paper's numbers beside ours: reads artifacts.

Never builds a network or computes what takes one.
"""
