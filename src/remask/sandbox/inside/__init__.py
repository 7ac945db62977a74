"""What runs inside the boxes, imported there as `inside`: the standard library and nothing of Remask."""
