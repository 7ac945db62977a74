"""Supervised fine-tuning: `presets` name the methods, `trainer` runs them."""
