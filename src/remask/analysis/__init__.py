"""Instruments: what a model and a method do, token by token."""
