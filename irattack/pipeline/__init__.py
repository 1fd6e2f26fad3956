"""Cells, artifacts and the jobs that make them, the step cache, leave-one-out and statistics.

Alone writes results to the disk; never knows how a table looks.
"""
