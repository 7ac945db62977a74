"""Reinforcement learning with verifiable rewards: `presets` name the methods, `rollout` samples, `trainer` learns."""
