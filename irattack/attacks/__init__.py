"""The attack loop and the pieces that fill its slots: tensors in, tensors out.

Knows nothing of disks, configurations or where networks and images come from.
"""
