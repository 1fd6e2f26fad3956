"""What a user calls, settings and their errors, launchers.

Knows which jobs a command needs; computes no number itself.
"""
