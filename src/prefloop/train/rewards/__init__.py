"""Training reward models of every kind, one module a kind; `train/reward.py` chooses."""
