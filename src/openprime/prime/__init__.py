"""The paper: PRIME, algorithm 1 and its equations. Read loop, rollouts, rewards, losses, advantages, methods."""
