"""Merit: what an adapter is asked, how its answers are checked, and whether one adapter does better than another."""
