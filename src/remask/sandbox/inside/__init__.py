"""What runs inside the boxes, imported there as `inside`: the standard library and nothing of Remask.

Every program has two new interpreters, so that little is imported: not `typing`, whose names only annotations need.
"""
