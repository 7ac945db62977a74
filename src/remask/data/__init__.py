"""Data: sources of rows, chat templates, the canvas, and batches with their noise."""
